"""What a backend must bring; the semantics are built on it once, for all backends alike.

Every operation, collective or channel, is one *posting*: each rank lays down a header that says what it
believes the operation to be, and some ranks lay down parts, bytes for everybody. A backend moves headers
and parts and can wait; it does not know what they mean. ``RankCommunicator`` makes everything else of it: versions,
bounds, comparisons, timeouts and their messages. ``docs/how-to/write-a-transport.md`` goes through it with an example,
and ``vitrail.testing.comm`` tries the laws on it.

Promises that every method keeps:

 1. Nothing but ``open``, ``wait``, ``shut`` and ``close`` may block, and these never longer than they are asked to.
 2. One thread of a rank calls, always the same one; ``abort`` and ``aborted`` alone may be called from any thread.
 3. After an abort is known here, ``wait`` returns at once, ``open`` raises ``CommAborted`` and ``post`` may do nothing
    but must not block; ``RankCommunicator`` asks ``aborted`` before it hands out anything.
 4. What arrives is kept until its posting is released, whichever order it arrives in, however late it is asked for.
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
    """Why a run was revoked; the first one counts."""

    culprit: int
    reason: str


def describe_error(error: BaseException) -> str:
    """An error as the reason of an abort."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Posting(Protocol):
    """One operation as one rank sees it. Only the rank's own thread calls; nothing here blocks."""

    def is_complete(self) -> bool:
        """Whether all that this rank needs has arrived: headers and parts of the witnesses; its own count as here.

        Once True it stays so. If the operation is broken by a conflict it may stay False for ever: the conflict is
        asked for, too. What counts as needed is ``post``'s ``witness``.
        """

    def conflict(self) -> tuple[int, bytes] | None:
        """Who disagrees, and a header that differs from this rank's; None as long as none is known.

        Headers of one operation that are not equal, byte for byte, disagree. All those that have arrived are compared,
        of witnesses at least. With the headers of three ranks or more at hand the culprit is the odd one out, which may
        be this rank itself; else the other one: ``odd_one_out`` counts. What completes an operation must be compared
        before ``is_complete`` says so.
        """

    def missing(self) -> list[int]:
        """Ranks of which something is awaited, for the message of a timeout; empty when complete."""

    def part(self, index: int) -> Tensor:
        """The bytes of a part as the source laid them down, UInt8[Tensor, "nbytes"]; only asked for when complete.

        The caller copies and never writes. Every rank may ask for every part, the source for its own, too.
        """

    def is_taken(self) -> bool:
        """Whether every rank has posted its share of this operation, as far as the backend can tell.

        A source waits for it before it uses a channel's slot again: it may be True too late, and never too early.
        """

    def release(self) -> None:
        """Give the posting up: this rank reads it no more. What others still need of it must not go away.

        Called once or more, also before the shares of slow ranks have come, which are then thrown away.
        """


class Transport(Protocol):
    """One rank's end of a backend. Made by the rank's own thread and handed to ``RankCommunicator``.

    Attributes:
        rank: 0, 1, ..., world_size - 1.
        world_size: Number of ranks; with 1 nothing may ever wait.
        backend: The backend's name, for people.
        device: Where parts travel; headers, parts handed to ``post`` and parts handed out are on CPU.
    """

    @property
    def rank(self) -> int:
        """Which rank this is."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    @property
    def backend(self) -> str:
        """The backend's name."""

    @property
    def device(self) -> torch.device:
        """Where parts travel."""

    def clock(self) -> float:
        """Seconds since some moment that all ranks share as well as they can: exactly on one host. Never goes back."""

    def open(self, domain: str) -> None:
        """Prepare an ordering domain, e.g. ``main`` or ``main/a``; all ranks call this in the same order.

        Called once for a domain, before its first ``post``; names never come again in a run. May wait for all ranks.

        Raises:
            CommAborted: If the run was revoked.
            CommTimeout: If a rank does not come.
        """

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> Posting:
        """Lay down this rank's share of an operation; does not block, whatever the others do.

        Every rank posts the same operations of a domain in the same order, and each rank may mix the domains as it
        likes. Ranks that err disagree in everything, in the number and size of parts, too: the header tells, and the
        transport must live to compare it.

        Args:
            domain: Operations of one domain are matched by ``seq``, domains independently.
            seq: 0, 1, 2, ... in each domain.
            header: What this rank believes the operation to be; 256 bytes (``vitrail.comm.message_header.SIZE``).
            parts: All parts, alike on every rank if the headers are; there may be none, and empty ones.
            mine: The parts whose source is this rank, by index, UInt8[Tensor, "nbytes"]: private copies that nobody
                changes later, so that they need not be copied again.
            witness: Whose header completion waits for and is compared: with "all" those of all ranks, so that nobody
                goes on before all have come; with "sources" those of the ranks that have parts, so that a reader does
                not wait for other readers and a source waits for nobody.
        """

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Block until ``ready()``, an abort, or the moment ``deadline`` of ``clock``, whichever is first.

        None is no deadline, and infinity may be given. Returns without a word in all three cases; a deadline that is
        past lets ``ready`` be asked once. ``ready`` asks postings and is cheap; ``str(ready)`` says what is awaited.
        """

    def abort(self, abort: Abort) -> None:
        """Revoke the run on every rank and wake every wait, from any thread; the first call of all ranks counts.

        It does not wait for the others to hear of it, and raises nothing, whatever has broken.
        """

    def aborted(self) -> Abort | None:
        """The abort that is known here, if any: the same one on every rank, and the same from then on."""

    def note(self, text: str) -> None:
        """Where this rank is, for the messages of others, which may hear of it late."""

    def behind(self) -> tuple[int, str]:
        """The rank that has posted least over all domains, and its last note; this rank unless another has posted less.

        It is who a timeout blames, so it must not be the one that waited.
        """

    def shut(self, domains: Sequence[str]) -> None:
        """Give back what domains hold that every rank has closed: splits and their channels that ended early."""

    def close(self) -> None:
        """Give resources back, after a clean end or an abort; nothing is awaited. May be called again."""
