"""Ranks that share RAM: headers and parts are in one table, and each rank reads what has reached it.

Used by the in-process backend, where everything arrives at once, and by the simulator, where a network model gives the
times of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field

from vitrail.comm.message_header import odd_one_out
from vitrail.comm.transport import Abort, Part, Witness

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Arrivals = Callable[[int, int], list[float]]  # (source, bytes) -> times of arrival at each rank


@define
class Slot:
    """One operation in the table."""

    headers: dict[int, bytes] = field(factory=dict)  # by rank
    arrivals: dict[int, list[float]] = field(factory=dict)  # arrival of a rank's header and parts, at each rank
    parts: dict[tuple[int, int], Any] = field(factory=dict)  # (index, source) -> bytes
    released: set[int] = field(factory=set)


class Hub:
    """The table of one run.

    Args:
        world_size: Number of ranks.
        clock: Returns seconds.
        arrivals: The network model; None if everything arrives at once.
    """

    def __init__(self, world_size: int, clock: Callable[[], float], arrivals: Arrivals | None = None):
        self.world_size, self.clock = world_size, clock
        self._arrivals = arrivals or (lambda source, nbytes: [0.0] * world_size)
        self.slots: dict[tuple[str, int], Slot] = {}
        self.abort: Abort | None = None
        self.posted = [0] * world_size  # number of operations, by rank
        self.notes = [""] * world_size  # position, by rank

    def post(
        self,
        rank: int,
        domain: str,
        seq: int,
        header: bytes,
        parts: Sequence[Part],
        mine: Mapping[int, Tensor],
        witness: Witness,
    ) -> HubPosting:
        """Add a rank's share of an operation; see ``Transport.post``.

        Args:
            rank: The rank that posts.
            domain: Ordering domain.
            seq: Number of the operation in the domain.
            header: Description of the operation, 256 bytes.
            parts: All parts of the operation.
            mine: The rank's parts by index, UInt8[Tensor, "nbytes"].
            witness: Whose headers completion waits for.
        """
        slot = self.slots.setdefault((domain, seq), Slot())
        slot.headers[rank] = header
        for index, data in mine.items():
            slot.parts[index, rank] = data
        # last, since readers take no lock
        slot.arrivals[rank] = self._arrivals(rank, sum(part.nbytes for part in parts if part.src == rank))
        self.posted[rank] += 1
        needed = range(self.world_size) if witness == "all" else sorted({part.src for part in parts})
        return HubPosting(self, (domain, seq), slot, rank, header, parts, tuple(needed))

    def revoke(self, abort: Abort) -> None:
        """Record an abort; the first one counts."""
        if self.abort is None:
            self.abort = abort

    def behind(self, rank: int) -> tuple[int, str]:
        """Return the rank that has posted least, in a tie ``rank``, and its last note.

        Every rank posts the same operations, whatever their domains, so the one with the least is behind.
        """
        last = min(range(self.world_size), key=lambda other: (self.posted[other], other != rank))
        return last, self.notes[last]


class HubPosting:
    """An operation as one rank sees it; see ``Posting``."""

    def __init__(
        self,
        hub: Hub,
        key: tuple[str, int],
        slot: Slot,
        rank: int,
        header: bytes,
        parts: Sequence[Part],
        needed: tuple[int, ...],
    ):
        self._hub, self._key, self._slot, self._rank = hub, key, slot, rank
        self._header, self._parts, self._needed = header, parts, needed

    def _has_reached(self, source: int) -> bool:
        arrivals = self._slot.arrivals.get(source)
        return arrivals is not None and arrivals[self._rank] <= self._hub.clock()

    def _have_reached(self, sources: Iterable[int]) -> bool:
        arrivals, rank, now = self._slot.arrivals, self._rank, self._hub.clock()
        for source in sources:  # the hot loop of a simulation
            times = arrivals.get(source)
            if times is None or times[rank] > now:
                return False
        return True

    def is_complete(self) -> bool:
        """Whether everything that this rank needs has arrived."""
        return self._have_reached(self._needed)

    def is_taken(self) -> bool:
        """Whether the headers of all ranks have arrived."""
        return self._have_reached(range(self._hub.world_size))

    def conflict(self) -> tuple[int, bytes] | None:
        """Return the rank that disagrees, by a vote over the headers that have arrived; in a tie not this rank."""
        headers = self._slot.headers.copy()
        if len(set(headers.values())) < 2:
            return None
        known = {source: header for source, header in headers.items() if self._has_reached(source)}
        return odd_one_out(known | {self._rank: self._header}, self._rank)

    def missing(self) -> list[int]:
        """Return the ranks from which something is awaited."""
        return [source for source in self._needed if not self._has_reached(source)]

    def part(self, index: int) -> Tensor:
        """Return the bytes of a part, UInt8[Tensor, "nbytes"]."""
        data: torch.Tensor = self._slot.parts[index, self._parts[index].src]
        return data

    def release(self) -> None:
        """Release the posting; the operation is deleted when every rank has."""
        self._slot.released.add(self._rank)
        if len(self._slot.released) == self._hub.world_size:
            self._hub.slots.pop(self._key, None)
