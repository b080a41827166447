"""Semantics of collectives and of a run's life cycle, shared by all backends."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vitrail.comm.channel import VersionedChannel
from vitrail.comm.message_header import describe, pack_header
from vitrail.comm.payload import from_bytes, size_of, to_bytes
from vitrail.comm.trace.recording import Recorder
from vitrail.comm.transport import Abort, Part, describe_error
from vitrail.comm.work import PostedWork, Ticket
from vitrail.errors import CommAborted, ProtocolError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.comm.transport import Posting, Transport, Witness

TIMEOUT_S = 300.0  # of one wait, not of a run


class RankCommunicator:
    """A ``Communicator`` over a transport.

    Args:
        transport: One rank's end of a backend.
        run_id: Equal on all ranks; messages of another run are refused.
        timeout: Timeout of one wait, seconds.
        checksums: Whether every part carries a checksum.
        domain: Ordering domain; ``split`` makes others.
        trace: Record of calls and waits; shared by all splits.
    """

    def __init__(
        self,
        transport: Transport,
        run_id: str = "run",
        *,
        timeout: float = TIMEOUT_S,
        checksums: bool = False,
        domain: str = "main",
        trace: Recorder | None = None,
    ):
        self.rank, self.world_size = transport.rank, transport.world_size
        self.backend, self.device = transport.backend, transport.device
        self.run_id, self.timeout, self.checksums, self.domain = run_id, timeout, checksums, domain
        self.trace = Recorder(transport.rank, transport.clock) if trace is None else trace
        self._transport = transport
        self._thread = threading.get_ident()
        self._seq = 0
        self._pending: list[PostedWork] = []
        self._tickets: list[Ticket] = []  # of works that were returned to the caller
        self._closed = self._is_ended = False
        self._children: list[RankCommunicator] = []
        self._channels: list[VersionedChannel] = []
        self._opened: Counter[str] = Counter()  # how often each name was opened
        self._parent: RankCommunicator | None = None
        self._name = domain  # its name in the parent
        transport.open(domain)

    # ------------------------------------------------------------------ collectives

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks have called it."""
        self.enter("barrier()")
        self.begin("barrier()", [], {}, _release).wait(timeout)

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False) -> PostedWork | None:
        """Overwrite ``tensor`` on every rank with the source's.

        Args:
            tensor: Of one dtype and shape on all ranks.
            src: The source's rank.
            async_op: Return a ``Work`` at once instead of waiting.
        """
        return self._begun_or_done(
            self._from_source(f"broadcast({describe(tensor)}, src={src})", tensor, src), async_op
        )

    def all_gather_into(
        self,
        out: Mapping[Any, Tensor],
        mine: Mapping[Any, Tensor],
        owner: Mapping[Any, int],
        *,
        async_op: bool = False,
    ) -> PostedWork | None:
        """Fill ``out[key]`` on every rank with ``mine[key]`` of the key's owner.

        Args:
            out: A tensor for every key, of one dtype and shape on all ranks.
            mine: The tensors of the keys that this rank owns.
            owner: The rank of every key, equal on all ranks.
            async_op: Return a ``Work`` at once instead of waiting.
        """
        keys = sorted(owner)
        call = f"all_gather_into({len(keys)} keys)"
        self.enter(call)
        sources = sorted(set(owner.values()))
        for src in sources:
            self._check_rank(src)
        wrong = set(mine) ^ {key for key in keys if owner[key] == self.rank} or set(out) ^ set(keys)
        wrong |= {key for key in mine if key in out and describe(mine[key]) != describe(out[key])}
        if wrong:
            named = ", ".join(sorted(map(repr, wrong)))
            self.refuse(f"all_gather_into: keys {named} do not fit what rank {self.rank} owns or receives")
        what = "; ".join(f"{key!r}: {describe(out[key])} from {owner[key]}" for key in keys)
        groups = [[key for key in keys if owner[key] == src] for src in sources]
        sizes = [size_of([out[key] for key in group], self.checksums) for group in groups]
        own = {}
        if self.rank in sources:
            number = sources.index(self.rank)
            own[number] = to_bytes([mine[key] for key in groups[number]], self.checksums)

        def finish(posting: Posting) -> None:
            for index, group in enumerate(groups):
                from_bytes(posting.part(index), [out[key] for key in group], self.checksums, call)
            posting.release()

        return self._begun_or_done(self.begin(call, list(map(Part, sources, sizes)), own, finish, what), async_op)

    def relay(self, tensor: Tensor, src: int, label: str = "") -> PostedWork:
        """As ``broadcast`` with ``async_op``, but complete as soon as the source's message is here.

        Args:
            tensor: Of one dtype and shape on all ranks; the source's is read, the others' are overwritten.
            src: The source's rank.
            label: What it is, compared between ranks and shown in messages.
        """
        call = f"relay({label or 'tensor'}: {describe(tensor)}, src={src})"
        return self._handed_out(self._from_source(call, tensor, src, witness="sources"))

    def broadcast_object(self, value: Any, src: int) -> Any:
        """Return the source's value on every rank; small, of JSON types."""
        import torch

        body = json.dumps(value, sort_keys=True).encode() if self.rank == src else b""
        length = torch.tensor([len(body)], dtype=torch.int64, device="cpu")
        self.broadcast(length, src)
        data = torch.frombuffer(bytearray(body or int(length)), dtype=torch.uint8)
        self.broadcast(data, src)
        return json.loads(bytes(data.tolist()))

    # ------------------------------------------------------------------ channels and splits

    def channel(
        self, name: str, *, src: int, shape: tuple[int, ...], dtype: torch.dtype, max_staleness: int = 1
    ) -> VersionedChannel:
        """Open a channel; collective, with arguments compared between ranks.

        Args:
            name: Not used by an open channel or split of this communicator.
            src: The rank that writes.
            shape: Shape of every version.
            dtype: Type of every version.
            max_staleness: Number of versions behind the last posted one that may be read.
        """
        call = f"channel({name!r}, src={src}, {tuple(shape)}, {dtype}, max_staleness={max_staleness})"
        self.enter(call)
        self._check_rank(src)
        if max_staleness < 0:
            self.refuse(f"channel {name!r}: max_staleness must be 0 or more, got {max_staleness}")
        channel = VersionedChannel(self, self._open(call, name), name, src, tuple(shape), dtype, max_staleness)
        self._channels.append(channel)
        return channel

    def split(self, name: str) -> RankCommunicator:
        """Return a communicator of the same ranks with an ordering domain of its own; collective."""
        self.enter(f"split({name!r})")
        domain = self._open(f"split({name!r})", name)
        options: dict[str, Any] = {"timeout": self.timeout, "checksums": self.checksums, "trace": self.trace}
        child = RankCommunicator(self._transport, self.run_id, domain=domain, **options)
        child._parent, child._name = self, name
        self._children.append(child)
        return child

    def _open(self, call: str, name: str) -> str:
        if name in {*(channel.name for channel in self._channels), *(child._name for child in self._children)}:
            self.refuse(f"{call}: the name {name!r} is taken")
        self._opened[name] += 1
        self.begin(call, [], {}, _release).wait()
        again = f"#{self._opened[name]}" if self._opened[name] > 1 else ""
        return f"{self.domain}/{name.replace('%', '%25').replace('/', '%2F').replace('#', '%23')}{again}"

    # ------------------------------------------------------------------ life cycle

    def note(self, text: str) -> None:
        """Record this rank's position; other ranks show it in error messages."""
        self._transport.note(text)

    def abort(self, reason: str) -> None:
        """Revoke the run on all ranks; may be called from any thread."""
        if not self._is_ended:
            self._transport.abort(Abort(self.rank, reason))

    def check(self) -> None:
        """Raise ``CommAborted`` if the run was revoked.

        Raises:
            CommAborted: With the first culprit and reason.
        """
        abort = self._transport.aborted()
        if abort is not None:
            raise CommAborted(abort.culprit, abort.reason)

    def close(self) -> tuple[str, ...]:
        """End the communicator: wait for all ranks unless the run was revoked. Returns the works never waited for."""
        if self._closed:
            return ()
        self._check_thread("close()")
        family = self._family()
        leaked = tuple(ticket.call for member in family for ticket in member._tickets if not ticket.was_seen)
        try:
            if self._transport.aborted() is None:
                self._end_together(family)
        except BaseException as error:  # before the transport is closed
            self.abort(describe_error(error))
            raise
        finally:
            for member in family:
                member._closed, member._is_ended, member._pending = True, self.domain == "main", []
            if self.domain == "main":
                self._transport.close()
        if self._parent is not None:  # the name can be used again, for a new domain
            self._parent._children.remove(self)
            channels = [channel.domain for member in family for channel in member._channels]
            self._transport.shut([*(member.domain for member in family), *channels])
        return leaked

    def _family(self) -> list[RankCommunicator]:
        """Return this communicator and all open splits below it."""
        return [self, *(member for child in self._children for member in child._family())]

    def _end_together(self, family: list[RankCommunicator]) -> None:
        """Post the end in all ordering domains at once, so that no peer waits in any of them."""
        said = []
        for member in family:
            versions = "; ".join(channel.progress() for channel in member._channels)
            said.append(member.begin("close()", [], {}, _release, versions))
            said += [channel.begin_close() for channel in member._channels]
        for member in family:
            said += member._pending
        for work in said:
            work.settle()
        for channel in (channel for member in family for channel in member._channels):
            channel.drain()  # all ranks have posted everything, so all of it arrives

    # ------------------------------------------------------------------ postings

    def begin(
        self,
        call: str,
        parts: Sequence[Part],
        mine: Mapping[int, Tensor],
        finish: Callable[[Posting], None],
        details: str = "",
        witness: Witness = "all",
    ) -> PostedWork:
        """Post the next collective of this domain.

        Args:
            call: The operation with its arguments.
            parts: All parts of the operation.
            mine: This rank's parts by index, UInt8[Tensor, "nbytes"].
            finish: Reads the posting once it is complete.
            details: Compared between ranks, but not shown in the trace.
            witness: Whose headers completion waits for, see ``Transport.post``.
        """
        work = self.post(self.domain, self._seq, call, parts, mine, witness, finish, details)
        self._seq += 1
        self._pending = [old for old in self._pending if not old.poll()]
        self._pending.append(work)
        return work

    def _from_source(self, call: str, tensor: Tensor, src: int, witness: Witness = "all") -> PostedWork:
        """Begin to overwrite a tensor by the source's."""
        self.enter(call)
        self._check_rank(src)
        mine = {0: to_bytes([tensor], self.checksums)} if src == self.rank else {}

        def finish(posting: Posting) -> None:
            if src != self.rank:
                from_bytes(posting.part(0), [tensor], self.checksums, call)
            posting.release()

        return self.begin(call, [Part(src, size_of([tensor], self.checksums))], mine, finish, witness=witness)

    def _begun_or_done(self, work: PostedWork, async_op: bool) -> PostedWork | None:
        if async_op:
            return self._handed_out(work)
        work.wait()
        return None

    def _handed_out(self, work: PostedWork) -> PostedWork:
        """Return a work that the caller must wait for, which is checked at the end."""
        self._tickets = [old for old in self._tickets if not old.was_seen]
        self._tickets.append(work.ticket)
        return work

    def enter(self, call: str) -> None:
        """Check that a call is allowed; every call begins with this.

        Raises:
            CommAborted: If the run was revoked.
            ProtocolError: From another thread than the one that made the communicator, or after ``close``.
        """
        self._check_thread(call)
        if self._closed:
            raise ProtocolError(f"{call}: the communicator is closed")
        self.check()

    def _check_thread(self, call: str) -> None:
        if threading.get_ident() != self._thread:
            raise ProtocolError(f"{call}: called from another thread than the one that made the communicator")

    def post(
        self,
        domain: str,
        seq: int,
        call: str,
        parts: Sequence[Part],
        mine: Mapping[int, Tensor],
        witness: Witness,
        finish: Callable[[Posting], None],
        details: str = "",
    ) -> PostedWork:
        """Post this rank's share of an operation.

        Args:
            domain: Ordering domain.
            seq: Number of the operation in the domain.
            call: The operation with its arguments.
            parts: All parts of the operation.
            mine: This rank's parts by index, UInt8[Tensor, "nbytes"].
            witness: Whose headers completion waits for, see ``Transport.post``.
            finish: Reads the posting once it is complete.
            details: Compared between ranks, but not shown in the trace.
        """
        header = pack_header(self.run_id, seq, f"{call} in {domain}", details)
        with self.trace.span("comm", call, domain=domain, seq=seq, bytes=sum(part.nbytes for part in parts)):
            posting = self._transport.post(domain, seq, header, parts, mine, witness)
        return PostedWork(self._transport, self.trace, posting, call, finish, self.timeout, header)

    def open_domain(self, domain: str) -> None:
        """Prepare an ordering domain; every rank calls this in the same order."""
        self._transport.open(domain)

    def _check_rank(self, src: int) -> None:
        if not 0 <= src < self.world_size:
            self.refuse(f"rank {src} does not exist; there are {self.world_size}")

    def refuse(self, reason: str) -> NoReturn:
        """Abort the run and raise, for a call that breaks a rule.

        Raises:
            ProtocolError: Always.
        """
        self.abort(reason)
        raise ProtocolError(reason)


def _release(posting: Posting) -> None:
    posting.release()
