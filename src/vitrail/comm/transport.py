"""Protocol of transports, which a backend implements; the semantics are built on it once for all backends.

Every operation, collective or channel, is one *posting*: each rank posts a header that describes the operation
as it believes it to be, and some ranks post parts, bytes for all ranks. A backend moves headers and parts and
can wait; it does not interpret them. ``RankCommunicator`` implements everything else: versions, bounds,
comparisons, timeouts and their messages. ``docs/how-to/write-a-transport.md`` explains it with an example, and
``vitrail.testing.comm`` tests the laws.

Promises that every method keeps:

 1. Only ``open``, ``wait``, ``shut`` and ``close`` may block, and never longer than requested.
 2. All calls of a rank come from one thread; only ``abort`` and ``aborted`` may be called from any thread.
 3. After an abort is known here, ``wait`` returns at once, ``open`` raises ``CommAborted`` and ``post`` may do nothing
    but must not block; ``RankCommunicator`` calls ``aborted`` before it returns any data.
 4. What arrives is kept until its posting is released, in whichever order it arrives and however late it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import frozen

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Witness = Literal["all", "sources"]


@frozen
class Part:
    """Bytes from one rank to all."""

    src: int
    nbytes: int


@frozen
class Abort:
    """The reason why a run was revoked; the first one counts."""

    culprit: int
    reason: str


def describe_error(error: BaseException) -> str:
    """Return an error as the reason of an abort."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Posting(Protocol):
    """One operation as one rank sees it. Called only from the rank's own thread; no method blocks."""

    def is_complete(self) -> bool:
        """Whether everything that this rank needs has arrived: headers and parts of the witnesses, its own included.

        Once True it stays so. After a conflict it may stay False for ever, as the conflict is queried separately.
        ``witness`` of ``post`` defines what is needed.
        """

    def conflict(self) -> tuple[int, bytes] | None:
        """Return the rank that disagrees, and a header that differs from this rank's; None while none is known.

        Headers of one operation that are not equal byte for byte disagree. All that have arrived are compared, at
        least those of witnesses. With the headers of three ranks or more the culprit is the odd one out, which may be
        this rank itself; with two it is the other one: see ``odd_one_out``. Headers that complete an operation must be
        compared before ``is_complete`` returns True.
        """

    def missing(self) -> list[int]:
        """Return the ranks from which something is awaited, for the message of a timeout; empty when complete."""

    def part(self, index: int) -> Tensor:
        """Return the bytes of a part as the source posted them, UInt8[Tensor, "nbytes"]; called only when complete.

        The caller copies and never writes. Every rank may read every part, the source its own, too.
        """

    def is_taken(self) -> bool:
        """Whether every rank has posted its share of this operation, as far as the backend can tell.

        A source waits for it before it reuses a channel's slot: it may become True late, but never early.
        """

    def release(self) -> None:
        """Release the posting: this rank no longer reads it. What other ranks still need must be kept.

        May be called more than once, also before the shares of slow ranks have arrived, which are then discarded.
        """


class Transport(Protocol):
    """One rank's end of a backend. Made by the rank's own thread and passed to ``RankCommunicator``.

    Attributes:
        rank: 0, 1, ..., world_size - 1.
        world_size: Number of ranks; with 1 nothing may ever wait.
        backend: Name of the backend, for messages.
        device: Device of parts in transit; headers and parts passed to ``post`` or returned are on the CPU.
    """

    @property
    def rank(self) -> int:
        """Number of this rank."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def backend(self) -> str:
        """Name of the backend."""

    @property
    def device(self) -> torch.device:
        """Device of parts in transit."""

    def clock(self) -> float:
        """Return seconds since a moment shared by all ranks, exactly so on one host; monotonic."""

    def open(self, domain: str) -> None:
        """Prepare an ordering domain, e.g. ``main`` or ``main/a``; all ranks call this in the same order.

        Called once per domain, before its first ``post``; names are never reused in a run. May wait for all ranks.

        Raises:
            CommAborted: If the run was revoked.
            CommTimeout: If a rank does not call it in time.
        """

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> Posting:
        """Post this rank's share of an operation; does not block, whatever the others do.

        Every rank posts the same operations of a domain in the same order, and each rank may interleave domains
        freely. Ranks that disagree may differ in everything, the number and size of parts included: the header shows
        it, and the transport must survive to compare it.

        Args:
            domain: Operations of one domain are matched by ``seq``, domains independently.
            seq: 0, 1, 2, ... in each domain.
            header: The operation as this rank believes it to be; 256 bytes (``vitrail.comm.message_header.SIZE``).
            parts: All parts, equal on every rank if the headers are; there may be none, and empty ones.
            mine: The parts whose source is this rank, by index, UInt8[Tensor, "nbytes"]: private copies that are
                never changed, so that they need not be copied again.
            witness: Whose headers completion waits for and compares: with "all" those of all ranks, so that no rank
                continues before all have posted; with "sources" those of the ranks that have parts, so that a reader
                does not wait for other readers and a source waits for none.
        """

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Block until ``ready()``, an abort, or the moment ``deadline`` of ``clock``, whichever is first.

        None or infinity mean no deadline. Returns silently in all three cases; after a deadline that has passed already
        ``ready`` is called once. ``ready`` queries postings and is cheap; ``str(ready)`` describes what is awaited.
        """

    def abort(self, abort: Abort) -> None:
        """Revoke the run on every rank and wake every wait, from any thread; the first call of all ranks counts.

        Does not wait until the others know, and never raises.
        """

    def aborted(self) -> Abort | None:
        """Return the abort that is known here, if any; it never changes and is the same on every rank."""

    def note(self, text: str) -> None:
        """Record this rank's position for the messages of others, which may see it late."""

    def behind(self) -> tuple[int, str]:
        """Return the rank that has posted least over all domains, and its last note; in a tie this rank.

        A timeout blames this rank, so it must not be one that merely waited.
        """

    def shut(self, domains: Sequence[str]) -> None:
        """Release what domains hold that every rank has closed: splits and their channels that ended early."""

    def close(self) -> None:
        """Release resources, after a clean end or an abort, without waiting. May be called again."""
