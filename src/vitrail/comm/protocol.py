"""Protocols of communication between ranks: collectives in one order, channels with versions.

``Communicator`` moves the data of a step; every rank calls the same operations in the same order, and each
call is checked against the peers'. ``Channel`` is a register that one rank writes and all read: versions
0, 1, 2, ..., each readable exactly, for as long as the staleness bound allows (the stale synchronous
parallel model; Ho et al., 2013, "More Effective Distributed ML via a Stale Synchronous Parallel
Parameter Server", sec. 3).

The rules, which the test suite checks for every backend:

 1. ``publish(v)`` takes v = 0, 1, 2, ...; another version is a ``ProtocolError`` and aborts the run.
 2. When ``publish`` or a collective returns, the value is fixed: later writes to its source are not seen.
 3. Every rank calls ``publish(v)``, which posts the readers' receive. It blocks only while its own slot for
    ``v - (max_staleness + 2)`` is still in use.
 4. ``fetch(v)`` returns a private tensor, bit for bit what was published as v.
 5. A reader at step t may use versions in [t - max_staleness, t]; ``fetch_within`` takes the newest complete.
 6. What the source did before ``publish`` is visible after ``fetch``; ``is_completed`` is never early.
 7. Versions may complete in any order; ``latest()`` is the largest v such that all up to v are complete.
 8. Channels, splits and runs never see each other's data; a foreign or unequal message is a ``ProtocolError``.
 9. After ``abort`` on any rank, every pending and later call on every rank raises ``CommAborted`` with the
    first culprit and reason; buffers of pending calls are never handed out.
10. ``CommTimeout`` names the operation and the rank that is behind, and aborts the run.
11. ``close`` is collective after a clean run, local after an abort; it returns the works never waited for.
12. All calls of a rank come from one thread; only ``abort`` may come from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.comm.trace.recording import Recorder


class Work(Protocol):
    """A pending operation."""

    def is_completed(self) -> bool:
        """Whether ``wait`` would return, or raise, at once; True means that the result can be read."""

    def wait(self, timeout: float | None = None) -> None:
        """Block until the result can be read; may be called again.

        Raises:
            CommTimeout: After ``timeout`` seconds, the communicator's own if None.
            CommAborted: If the run was revoked.
            ProtocolError: If a peer called something else.
        """

    def wait_or(self, others: Sequence[Work], timeout: float | None = None) -> None:
        """As ``wait``, for a message whose source waits for no other rank; a timeout blames the source.

        Args:
            others: Works of the same communicator; the wait ends, too, when all of them are complete. () for none.
            timeout: Seconds from now; the communicator's own if None.
        """

    def exception(self) -> BaseException | None:
        """Return what ``wait`` raised or would raise, as far as is known."""


class Channel(Protocol):
    """A versioned register, written by one rank and read by all."""

    name: str
    src: int
    max_staleness: int

    def publish(self, version: int, tensor: Tensor | None) -> Work:
        """Post a version: the source passes the value, the others None.

        Raises:
            ProtocolError: If ``version`` is not the next one, or the value has another type or shape.
        """

    def fetch(self, version: int, *, timeout: float | None = None) -> Tensor:
        """Return a private copy of exactly this version; blocks until it has arrived.

        Raises:
            ValueError: For a negative version.
            ProtocolError: For a version that was not posted here, which would never complete.
            StaleVersion: For a version older than ``last posted - max_staleness``.
        """

    def latest(self) -> int:
        """Return the largest version such that all up to it are complete here; -1 if none is."""

    def fetch_within(self, now: int, *, timeout: float | None = None) -> tuple[int, Tensor]:
        """Return the newest complete version in [now - max_staleness, now], with its number.

        Depends on timing, unlike ``fetch``; the trace records what it returned.
        """


class Communicator(Protocol):
    """One rank's end of a run. Every rank makes the same calls in the same order, which are compared.

    Every call but ``note``, ``abort`` and ``close`` raises ``CommAborted`` if the run was revoked, ``ProtocolError`` if
    the ranks disagree, after ``close`` or from another thread, and those that wait ``CommTimeout``; each ends the run
    on all ranks, but for calls from another thread and after ``close``.

    Attributes:
        rank: 0, 1, ..., world_size - 1.
        world_size: Number of ranks.
        backend: Name of the backend.
        device: Device of the data of collectives.
        run_id: Equal on all ranks; messages of another run are refused.
        trace: Events of this rank by the clock that all ranks share, all splits together.
    """

    rank: int
    world_size: int
    backend: str
    device: torch.device
    run_id: str
    trace: Recorder

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks have called it.

        Args:
            timeout: Seconds; the communicator's own if None.
        """

    def broadcast(self, tensor: Tensor, src: int, *, async_op: bool = False) -> Work | None:
        """Overwrite ``tensor`` on every rank with the source's.

        Args:
            tensor: Of one dtype and shape on all ranks, of any layout. On the source it is read before the call
                returns.
            src: The source's rank, equal on all ranks.
            async_op: Return a ``Work`` at once; the others' tensors change when it is waited for, or by the end.
        """

    def all_gather_into(
        self,
        out: Mapping[Any, Tensor],
        mine: Mapping[Any, Tensor],
        owner: Mapping[Any, int],
        *,
        async_op: bool = False,
    ) -> Work | None:
        """Fill ``out[key]`` on every rank with ``mine[key]`` of the key's owner.

        Args:
            out: A tensor for every key, of one dtype and shape on all ranks; keys must be sortable.
            mine: The tensors of the keys that this rank owns.
            owner: The rank of every key, equal on all ranks; a rank may own none or all.
            async_op: Return a ``Work`` at once.
        """

    def relay(self, tensor: Tensor, src: int, label: str = "") -> Work:
        """Begin to overwrite ``tensor`` on every rank with the source's, without a barrier between ranks.

        Posted in the order of the other collectives, but complete here as soon as the source's message is here: no
        rank waits until other readers have posted it, nor the source for any.

        Args:
            tensor: Of one dtype and shape on all ranks, of any layout. On the source it is read before the call
                returns; the others' change when the work is waited for or found complete.
            src: The source's rank, equal on all ranks.
            label: What it is, compared between ranks and shown in messages.
        """

    def broadcast_object(self, value: Any, src: int) -> Any:
        """Return the source's value on every rank.

        Args:
            value: Small, of JSON types; used on the source only.
            src: The source's rank.
        """

    def channel(
        self, name: str, *, src: int, shape: tuple[int, ...], dtype: torch.dtype, max_staleness: int = 1
    ) -> Channel:
        """Open a channel; collective, with arguments compared between ranks.

        Args:
            name: Not used by an open channel or split of this communicator.
            src: The rank that writes.
            shape: Shape of every version.
            dtype: Type of every version.
            max_staleness: Number of versions behind the last posted one that may be read; ``max_staleness + 2``
                are kept.
        """

    def split(self, name: str) -> Communicator:
        """Return a communicator of the same ranks with an ordering domain of its own; collective.

        The name can be used again once the split is closed.
        """

    def note(self, text: str) -> None:
        """Record this rank's position, e.g. "step 12"; other ranks show it in error messages."""

    def abort(self, reason: str) -> None:
        """Revoke the run on all ranks, from any thread; of several calls the first reason counts."""

    def check(self) -> None:
        """Raise ``CommAborted`` if the run was revoked."""

    def close(self) -> tuple[str, ...]:
        """End the communicator: wait for all ranks after a clean run, for none after an abort.

        Returns:
            The calls of works that were never waited for or queried; () if closed before.

        Raises:
            ProtocolError: If ranks made different calls, e.g. published a different number of versions.
        """
