"""A communicator that writes down what it is asked, in plain words, so that a failing program can be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from attrs import define, field
from torch import Tensor

from vitrail.comm.message_header import describe
from vitrail.comm.protocol import Channel, Communicator, Work
from vitrail.comm.trace.recording import Recorder
from vitrail.testing.comm.payloads import spoil

T = TypeVar("T")
PENDING = "never came back"
REAL = 0.01  # of a rest, where time is real
LONGEST = 160  # letters of what an error says
FEW = 4  # values of a tensor that are shown


def show(value: Any) -> str:
    """A value in a few words: of a tensor, or of its bits, the type, the shape and the first values."""
    if isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], bytes):
        dtype = getattr(torch, value[0].removeprefix("torch."))
        flat = (
            torch.frombuffer(bytearray(value[2]), dtype=dtype)
            if value[2]
            else torch.empty(0, dtype=dtype, device="cpu")
        )
        value = flat.reshape(value[1])
    if isinstance(value, Tensor):
        first = ", ".join(_number(each) for each in value.reshape(-1)[:FEW].tolist())
        return f"{describe(value)} = [{first}{', ...' if value.numel() > FEW else ''}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{show(key)}: {show(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return repr(value)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@define
class Line:
    """A call: what is asked, with which values, and how it ended."""

    text: str
    values: Tensor | None = None
    result: Any = None
    end: str = PENDING

    def __str__(self) -> str:
        values = "" if self.values is None else f": {show(self.values)}"
        result = "" if self.result is None else f" -> {show(self.result)}"
        return f"{self.text}{values}{result}{f' ({self.end})' if self.end else ''}"


@define
class Transcript:
    """What one rank did, call by call."""

    lines: list[Line] = field(factory=list)

    def say(self, text: str, values: Tensor | None = None) -> None:
        """Something that needs no answer."""
        self.lines.append(Line(text, values, end=""))

    def call(self, text: str, function: Callable[[], T], values: Tensor | None = None) -> T:
        """Do something and write down how it ended."""
        line = Line(text, None if values is None else values.detach().clone())
        self.lines.append(line)
        try:
            result = function()
        except BaseException as error:
            line.end = f"raises {type(error).__name__}: {error}"[:LONGEST]
            raise
        line.end = ""
        if isinstance(result, Tensor):
            line.result = result.clone()
        elif isinstance(result, (bool, int, str, tuple)):
            line.result = result
        return result

    def __str__(self) -> str:
        return "\n".join(f"{number:>4}. {line}" for number, line in enumerate(self.lines, 1))


class RecordedWork:
    """A work of which is written down who asked for it."""

    def __init__(self, work: Work, tale: Transcript, call: str):
        self._work, self._tale, self._call = work, tale, call

    def is_completed(self) -> bool:
        """Whether it is complete."""
        return self._tale.call(f"asks whether the {self._call} is complete", self._work.is_completed)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for it."""
        limit = "" if timeout is None else f", {timeout:g} s at most"
        self._tale.call(f"waits for the {self._call}{limit}", lambda: self._work.wait(timeout))

    def exception(self) -> BaseException | None:
        """What waiting would raise."""
        return self._work.exception()


class RecordedChannel:
    """A channel of which is written down who reads and writes what."""

    def __init__(self, channel: Channel, tale: Transcript):
        self._channel, self._tale = channel, tale
        self.name, self.src, self.max_staleness = channel.name, channel.src, channel.max_staleness

    def publish(self, version: int, tensor: Tensor | None) -> RecordedWork:
        """Post a version."""
        what = "is ready to receive" if tensor is None else "publishes"
        call = f"version {version} of channel {self.name!r}"
        work = self._tale.call(f"{what} {call}", lambda: self._channel.publish(version, tensor), tensor)
        return RecordedWork(work, self._tale, call)

    def fetch(self, version: int, *, timeout: float | None = None) -> Tensor:
        """Read a version."""
        text = f"fetches version {version} of channel {self.name!r}"
        return self._tale.call(text, lambda: self._channel.fetch(version, timeout=timeout))

    def latest(self) -> int:
        """The newest without a gap."""
        return self._tale.call(f"asks for the latest version of channel {self.name!r}", self._channel.latest)

    def fetch_within(self, now: int, *, timeout: float | None = None) -> tuple[int, Tensor]:
        """Read the newest within the bound."""
        text = f"fetches of channel {self.name!r} the newest version that step {now} may use"
        return self._tale.call(text, lambda: self._channel.fetch_within(now, timeout=timeout))


class RecordedCommunicator:
    """What a law's program is given on each rank: a ``Communicator`` with a tale, and a few words more.

    Args:
        communicator: What the backend gave the rank.
        tale: Where the calls are written down; shared by splits.
    """

    def __init__(self, communicator: Communicator, tale: Transcript | None = None, name: str = ""):
        self.communicator = communicator
        self.tale = Transcript() if tale is None else tale
        self.rank, self.world_size = communicator.rank, communicator.world_size
        self.backend, self.device, self.run_id = communicator.backend, communicator.device, communicator.run_id
        self._of = f" of split {name!r}" if name else ""
        self._name = name

    @property
    def trace(self) -> Recorder:
        """The communicator's."""
        return self.communicator.trace

    # ------------------------------------------------------------------ a few words more

    def clock(self) -> float:
        """Seconds that all ranks share: virtual ones in a simulation."""
        return self.trace.clock()

    def rest(self, seconds: float) -> None:
        """Let time pass: all of it where it is virtual, a hundredth where it is real."""
        if seconds <= 0:
            return
        self.tale.say(f"rests {seconds:g} s")
        spend = getattr(getattr(self.communicator, "_transport", None), "spend", None)
        if spend is not None:
            spend(seconds)
        else:
            time.sleep(seconds * REAL)

    def spoil(self, tensor: Tensor | None, what: str) -> None:
        """Overwrite a tensor that was given away."""
        if tensor is not None:
            self.tale.say(f"overwrites {what}")
            spoil(tensor)

    # ------------------------------------------------------------------ the communicator's own

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait for all ranks."""
        limit = "" if timeout is None else f", {timeout:g} s at most"
        self.tale.call(f"waits at a barrier{self._of}{limit}", lambda: self.communicator.barrier(timeout=timeout))

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False) -> RecordedWork | None:
        """Overwrite with the source's."""
        what = "broadcasts" if self.rank == src else f"receives rank {src}'s broadcast{self._of},"
        text = f"{what}{self._of}" if self.rank == src else f"{what} {describe(tensor)}"
        values = tensor if self.rank == src else None
        call = self._begun(text, async_op)
        work = self.tale.call(call, lambda: self.communicator.broadcast(tensor, src, async_op=async_op), values)
        if work is not None:
            return RecordedWork(work, self.tale, f"broadcast of rank {src}")
        self.tale.lines[-1].result = tensor.clone() if self.rank != src else None
        return None

    def all_gather_into(
        self,
        out: Mapping[Any, Tensor],
        mine: Mapping[Any, Tensor],
        owner: Mapping[Any, int],
        *,
        async_op: bool = False,
    ) -> RecordedWork | None:
        """Fill all keys."""
        owners = ", ".join(f"{key!r} of rank {rank}" for key, rank in owner.items())
        call = self._begun(f"gathers{self._of} ({owners or 'no keys'})", async_op)
        gather = self.communicator.all_gather_into
        work = self.tale.call(call, lambda: gather(out, mine, owner, async_op=async_op))
        if work is not None:
            return RecordedWork(work, self.tale, f"gather of {len(owner)} keys")
        self.tale.lines[-1].result = {key: tensor.clone() for key, tensor in out.items()}
        return None

    def broadcast_object(self, value: Any, src: int) -> Any:
        """The source's value."""
        what = f"tells all ranks {value!r}" if self.rank == src else f"is told a value by rank {src}"
        return self.tale.call(f"{what}{self._of}", lambda: self.communicator.broadcast_object(value, src))

    def channel(
        self, name: str, *, src: int, shape: tuple[int, ...], dtype: torch.dtype, max_staleness: int = 1
    ) -> RecordedChannel:
        """Open a channel."""
        size = "x".join(map(str, shape)) or "scalar"
        text = f"opens channel {name!r}{self._of} ({str(dtype).removeprefix('torch.')} {size}, written by rank {src}, "
        text += f"up to {max_staleness} version{'s' * (max_staleness != 1)} old)"
        options: dict[str, Any] = {"src": src, "shape": shape, "dtype": dtype, "max_staleness": max_staleness}
        return RecordedChannel(self.tale.call(text, lambda: self.communicator.channel(name, **options)), self.tale)

    def split(self, name: str) -> RecordedCommunicator:
        """Another ordering."""
        part = self.tale.call(f"opens split {name!r}{self._of}", lambda: self.communicator.split(name))
        return RecordedCommunicator(part, self.tale, f"{self._name}/{name}" if self._name else name)

    def note(self, text: str) -> None:
        """Where this rank is."""
        self.communicator.note(text)

    def abort(self, reason: str) -> None:
        """Revoke the run."""
        self.tale.call(f"ends the run: {reason}", lambda: self.communicator.abort(reason))

    def check(self) -> None:
        """Raise if the run was revoked."""
        self.communicator.check()

    def close(self) -> tuple[str, ...]:
        """End."""
        return self.tale.call(f"closes {self._of.removeprefix(' of ') or 'its communicator'}", self.communicator.close)

    @staticmethod
    def _begun(text: str, async_op: bool) -> str:
        return f"begins: {text}" if async_op else text
