"""A communicator that records its calls as text, so that a failing program can be read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
REAL = 0.01  # share of a rest that passes in real time
LONGEST = 160  # maximum length of an error's text in characters
FEW = 4  # maximum number of values shown of a tensor


def show(value: Any) -> str:
    """Format a value; a tensor, or the result of ``bits``, as dtype, shape and first values."""
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
    """One recorded call: its text, the values sent, its result and how it ended."""

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
    """Calls of one rank in order, as text."""

    lines: list[Line] = field(factory=list)

    def say(self, text: str, values: Tensor | None = None) -> None:
        """Record an event that is not a call, with the values of a tensor if given."""
        self.lines.append(Line(text, values, end=""))

    def call(self, text: str, function: Callable[[], T], values: Tensor | None = None) -> T:
        """Make a call and record its result or error.

        Args:
            text: Description of the call.
            function: The call.
            values: A tensor that it sends, to be shown.

        Returns:
            The result of the call, whose exceptions are re-raised.
        """
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
    """A ``Work`` that records its calls."""

    def __init__(self, work: Work, tale: Transcript, call: str):
        self._work, self._tale, self._call = work, tale, call

    def is_completed(self) -> bool:
        """Return whether the operation is complete."""
        return self._tale.call(f"asks whether the {self._call} is complete", self._work.is_completed)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the operation, at most ``timeout`` seconds."""
        limit = "" if timeout is None else f", {timeout:g} s at most"
        self._tale.call(f"waits for the {self._call}{limit}", lambda: self._work.wait(timeout))

    def wait_or(self, others: Sequence[Work], timeout: float | None = None) -> None:
        """Wait for the operation, or for all of some others."""
        plain = [other._work if isinstance(other, RecordedWork) else other for other in others]
        self._tale.call(f"waits for the {self._call}, or for others", lambda: self._work.wait_or(plain, timeout))

    def exception(self) -> BaseException | None:
        """Return the exception that waiting would raise, if any; not recorded."""
        return self._work.exception()


class RecordedChannel:
    """A ``Channel`` that records its calls; see there for arguments and errors."""

    def __init__(self, channel: Channel, tale: Transcript):
        self._channel, self._tale = channel, tale
        self.name, self.src, self.max_staleness = channel.name, channel.src, channel.max_staleness

    def publish(self, version: int, tensor: Tensor | None) -> RecordedWork:
        """Publish a version, or post to receive it if ``tensor`` is None."""
        what = "is ready to receive" if tensor is None else "publishes"
        call = f"version {version} of channel {self.name!r}"
        work = self._tale.call(f"{what} {call}", lambda: self._channel.publish(version, tensor), tensor)
        return RecordedWork(work, self._tale, call)

    def fetch(self, version: int, *, timeout: float | None = None) -> Tensor:
        """Read a version, waiting at most ``timeout`` seconds."""
        text = f"fetches version {version} of channel {self.name!r}"
        return self._tale.call(text, lambda: self._channel.fetch(version, timeout=timeout))

    def latest(self) -> int:
        """Return the newest version that has arrived without gaps."""
        return self._tale.call(f"asks for the latest version of channel {self.name!r}", self._channel.latest)

    def fetch_within(self, now: int, *, timeout: float | None = None) -> tuple[int, Tensor]:
        """Read the newest version within the bound at step ``now``; returns its number and the tensor."""
        text = f"fetches of channel {self.name!r} the newest version that step {now} may use"
        return self._tale.call(text, lambda: self._channel.fetch_within(now, timeout=timeout))


class RecordedCommunicator:
    """Communicator of a law's program: records the calls of a ``Communicator``, see there for arguments and errors.

    Args:
        communicator: The backend's communicator of this rank.
        tale: The transcript, shared by splits; a new one if None.
        name: Path of the split; empty for the run's communicator.
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
        """Trace recorder of the wrapped communicator."""
        return self.communicator.trace

    # ------------------------------------------------------------------ additions for programs of laws

    def clock(self) -> float:
        """Return the time in seconds on a clock shared by all ranks, virtual in a simulation."""
        return self.trace.clock()

    def rest(self, seconds: float) -> None:
        """Let ``seconds`` of virtual time pass, or a hundredth of them in real time."""
        if seconds <= 0:
            return
        self.tale.say(f"rests {seconds:g} s")
        spend = getattr(getattr(self.communicator, "_transport", None), "spend", None)
        if spend is not None:
            spend(seconds)
        else:
            time.sleep(seconds * REAL)

    def spoil(self, tensor: Tensor | None, what: str) -> None:
        """Overwrite a tensor after handing it over, and record that; ``what`` names it."""
        if tensor is not None:
            self.tale.say(f"overwrites {what}")
            spoil(tensor)

    # ------------------------------------------------------------------ methods of Communicator

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait for all ranks, at most ``timeout`` seconds."""
        limit = "" if timeout is None else f", {timeout:g} s at most"
        self.tale.call(f"waits at a barrier{self._of}{limit}", lambda: self.communicator.barrier(timeout=timeout))

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False) -> RecordedWork | None:
        """Overwrite the tensor with that of rank ``src``; returns a work if ``async_op``."""
        what = "broadcasts" if self.rank == src else f"receives rank {src}'s broadcast{self._of},"
        text = f"{what}{self._of}" if self.rank == src else f"{what} {describe(tensor)}"
        values = tensor if self.rank == src else None
        call = self._begun(text, async_op)
        work = self.tale.call(call, lambda: self.communicator.broadcast(tensor, src, async_op=async_op), values)
        if work is not None:
            return RecordedWork(work, self.tale, f"broadcast of rank {src}")
        self.tale.lines[-1].result = tensor.clone() if self.rank != src else None
        return None

    def relay(self, tensor: Tensor, src: int, label: str = "") -> RecordedWork:
        """Begin to overwrite the tensor with that of rank ``src``."""
        what = "relays" if self.rank == src else f"is ready for rank {src}'s relay of"
        text = f"{what} {label or 'a tensor'}{self._of}"
        work = self.tale.call(
            text, lambda: self.communicator.relay(tensor, src, label), tensor if self.rank == src else None
        )
        return RecordedWork(work, self.tale, f"relay of {label or 'a tensor'}")

    def all_gather_into(
        self,
        out: Mapping[Any, Tensor],
        mine: Mapping[Any, Tensor],
        owner: Mapping[Any, int],
        *,
        async_op: bool = False,
    ) -> RecordedWork | None:
        """Fill ``out`` with the tensors of all keys from their owners; returns a work if ``async_op``."""
        owners = ", ".join(f"{key!r} of rank {rank}" for key, rank in owner.items())
        call = self._begun(f"gathers{self._of} ({owners or 'no keys'})", async_op)
        gather = self.communicator.all_gather_into
        work = self.tale.call(call, lambda: gather(out, mine, owner, async_op=async_op))
        if work is not None:
            return RecordedWork(work, self.tale, f"gather of {len(owner)} keys")
        self.tale.lines[-1].result = {key: tensor.clone() for key, tensor in out.items()}
        return None

    def broadcast_object(self, value: Any, src: int) -> Any:
        """Return the value of rank ``src``."""
        what = f"tells all ranks {value!r}" if self.rank == src else f"is told a value by rank {src}"
        return self.tale.call(f"{what}{self._of}", lambda: self.communicator.broadcast_object(value, src))

    def channel(
        self, name: str, *, src: int, shape: tuple[int, ...], dtype: torch.dtype, max_staleness: int = 1
    ) -> RecordedChannel:
        """Open a channel that rank ``src`` publishes to."""
        size = "x".join(map(str, shape)) or "scalar"
        text = f"opens channel {name!r}{self._of} ({str(dtype).removeprefix('torch.')} {size}, written by rank {src}, "
        text += f"up to {max_staleness} version{'s' * (max_staleness != 1)} old)"
        options: dict[str, Any] = {"src": src, "shape": shape, "dtype": dtype, "max_staleness": max_staleness}
        return RecordedChannel(self.tale.call(text, lambda: self.communicator.channel(name, **options)), self.tale)

    def split(self, name: str) -> RecordedCommunicator:
        """Open a communicator of the same ranks with its own order of operations."""
        part = self.tale.call(f"opens split {name!r}{self._of}", lambda: self.communicator.split(name))
        return RecordedCommunicator(part, self.tale, f"{self._name}/{name}" if self._name else name)

    def note(self, text: str) -> None:
        """Set the text that timeouts of other ranks show as this rank's position."""
        self.communicator.note(text)

    def abort(self, reason: str) -> None:
        """Abort the run on all ranks."""
        self.tale.call(f"ends the run: {reason}", lambda: self.communicator.abort(reason))

    def check(self) -> None:
        """Raise CommAborted if the run was aborted; not recorded."""
        self.communicator.check()

    def close(self) -> tuple[str, ...]:
        """Close the communicator; returns the works that were never waited for."""
        return self.tale.call(f"closes {self._of.removeprefix(' of ') or 'its communicator'}", self.communicator.close)

    @staticmethod
    def _begun(text: str, async_op: bool) -> str:
        return f"begins: {text}" if async_op else text
