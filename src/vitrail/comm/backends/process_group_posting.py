"""Postings over process groups: pending transfers, and what has arrived in private buffers.

A group in which ranks disagree about a message's size ends the process of the rank that expected less (gloo raises
where nothing can catch it). So all messages of a group have one size, whatever the ranks believe: headers use one group
of a domain, parts another, split into frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.comm.message_header import SIZE, odd_one_out
from vitrail.comm.transport import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup, Work


FRAME = 1 << 16  # bytes; smaller parts are padded to one frame


class Transfer:
    """A pending operation of a group; polled before it is waited for, since the wait ignores aborts.

    Args:
        begin: Starts the operation.
        broken: Called with the reason if the operation fails, which means that a peer is gone.
    """

    def __init__(self, begin: Callable[[], Work], broken: Callable[[str], None]):
        self._broken = broken
        self._work: Work | None = None
        self.has_arrived = self.has_failed = False
        try:
            self._work = begin()
        except RuntimeError as error:
            self._fail(error)

    def is_done(self) -> bool:
        """Whether it has arrived; False for ever after a failure."""
        if self._work is not None and self._work.is_completed():
            try:
                self._work.wait()
                self.has_arrived = True
            except RuntimeError as error:
                self._fail(error)
            self._work = None
        return self.has_arrived

    def _fail(self, error: RuntimeError) -> None:
        self.has_failed = True
        self._broken(str(error))


@define
class Lane:
    """An ordering domain: its groups, and the operations whose headers have not been compared yet.

    Attributes:
        control: Group of the headers, or of a channel's versions, on CPU.
        payload: Group of the collectives' parts, in frames.
        device: Device of the parts in transit.
        broken: Called with the reason if an operation fails.
        unsettled: Operations whose headers are not compared, in order.
        conflict: The first disagreement, see ``Posting.conflict``.
    """

    control: ProcessGroup
    payload: ProcessGroup
    device: torch.device
    broken: Callable[[str], None]
    unsettled: deque[GatheredPosting] = field(factory=deque)
    conflict: tuple[int, bytes] | None = None

    def settle(self) -> None:
        """Compare the headers that have arrived, in the order of the operations, up to the first conflict."""
        while self.unsettled and self.conflict is None and self.unsettled[0].compare():
            self.unsettled.popleft()

    def broadcast(self, group: ProcessGroup, slot: Tensor, src: int) -> Transfer:
        """Start a broadcast.

        Args:
            group: One of the domain's groups.
            slot: Buffer that is sent or overwritten, UInt8[Tensor, "nbytes"].
            src: Rank that sends.
        """
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank, options.rootTensor = src, 0
        return Transfer(lambda: group.broadcast([slot], options), self.broken)


class GatheredPosting:
    """An operation with the headers of all ranks: they are gathered first, then every part is broadcast.

    It is complete only if its headers agree and those of all earlier operations in the domain do: after a disagreement
    a group would match operations that do not belong together.
    """

    def __init__(
        self, lane: Lane, rank: int, size: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor]
    ):
        import torch

        self._lane, self._rank, self._header = lane, rank, header
        self._settled = False
        own = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        self._headers = [_empty(SIZE) for _ in range(size)]
        self._gather = Transfer(lambda: lane.control.allgather([self._headers], [own]), lane.broken)
        lane.unsettled.append(self)
        self._parts = parts
        self._slots = [_empty(max(1, -(-part.nbytes // FRAME)) * FRAME, lane.device) for part in parts]
        for index, data in mine.items():
            self._slots[index][: len(data)].copy_(data)
        self._moves = [
            [lane.broadcast(lane.payload, frame, part.src) for frame in slot.view(-1, FRAME) if part.nbytes]
            for slot, part in zip(self._slots, parts, strict=True)
        ]

    @property
    def transfers(self) -> list[Transfer]:
        """All of its transfers."""
        return [self._gather, *(frame for move in self._moves for frame in move)]

    def compare(self) -> bool:
        """Compare this operation's headers; return whether they have arrived and agree."""
        if self._gather.is_done():
            headers = [bytes(header.tolist()) for header in self._headers]
            self._settled = len(set(headers)) == 1
            if not self._settled:
                self._lane.conflict = odd_one_out(dict(enumerate(headers)), self._rank)
        return self._settled

    def conflict(self) -> tuple[int, bytes] | None:
        """Return a rank whose header differs, in this operation or an earlier one of the domain."""
        self._lane.settle()
        return self._lane.conflict

    def is_complete(self) -> bool:
        """Whether the headers agree and every part of another rank has arrived."""
        self._lane.settle()
        return self._settled and not self._late()

    def missing(self) -> list[int]:
        """Return the ranks from which something is awaited; all others while headers are incomplete."""
        if not self._gather.is_done():
            return [rank for rank in range(len(self._headers)) if rank != self._rank]
        return sorted(self._late())

    def _late(self) -> set[int]:
        """Return the other ranks whose parts are incomplete."""
        moves = zip(self._moves, self._parts, strict=True)
        return {
            part.src for move, part in moves if part.src != self._rank and not all(frame.is_done() for frame in move)
        }

    def part(self, index: int) -> Tensor:
        """Return the bytes of a part, UInt8[Tensor, "nbytes"]."""
        return self._slots[index][: self._parts[index].nbytes].cpu()

    def is_taken(self) -> bool:
        """Whether every rank has posted: the headers have arrived."""
        return self._gather.is_done()

    def release(self) -> None:
        """Drop the parts; the group keeps what is still being sent."""
        self._slots = []


def _empty(nbytes: int, device: torch.device | str = "cpu") -> Tensor:
    import torch

    return torch.empty(nbytes, dtype=torch.uint8, device=device)


class SourcesPosting:
    """An operation witnessed by its sources only: a header before the bytes, one broadcast per source."""

    def __init__(self, lane: Lane, rank: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor]):
        import torch

        self._rank, self._header = rank, header
        own = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        ends: dict[int, int] = {}  # end of the bytes so far, by source
        self._places: list[tuple[int, int, int]] = []  # source, begin, end of each part
        for part in parts:
            begin = ends.get(part.src, SIZE)
            ends[part.src] = begin + part.nbytes
            self._places.append((part.src, begin, ends[part.src]))
        self._slots = {src: _empty(end) for src, end in sorted(ends.items())}
        if rank in self._slots:
            self._slots[rank] = torch.cat([own, *(mine[index] for index in sorted(mine))])
        self._moves = {src: lane.broadcast(lane.control, slot, src) for src, slot in self._slots.items()}

    @property
    def transfers(self) -> list[Transfer]:
        """All of its transfers."""
        return list(self._moves.values())

    def is_complete(self) -> bool:
        """Whether every other source's bytes have arrived, with the right header."""
        return not self.missing() and self.conflict() is None

    def conflict(self) -> tuple[int, bytes] | None:
        """Return a source whose header has arrived and differs."""
        for src, slot in self._slots.items():
            if src != self._rank and self._moves[src].is_done():
                theirs = bytes(slot[:SIZE].tolist())
                if theirs != self._header:
                    return src, theirs
        return None

    def missing(self) -> list[int]:
        """Return the sources whose bytes are awaited."""
        return [src for src, move in self._moves.items() if src != self._rank and not move.is_done()]

    def part(self, index: int) -> Tensor:
        """Return the bytes of a part, UInt8[Tensor, "nbytes"]."""
        src, begin, end = self._places[index]
        return self._slots[src][begin:end]

    def is_taken(self) -> bool:
        """Whether this rank's bytes are sent and the others' have arrived.

        A group sends once the receiver has posted, so with up to three ranks this means that all have posted; with more
        ranks some are served by others, without notice to the source.
        """
        return all(move.is_done() for move in self._moves.values())

    def release(self) -> None:
        """Drop the bytes; the group keeps what is still being sent."""
        self._slots = {}
