"""Channels: versions of one tensor from one rank, each readable exactly within the staleness bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

from vitrail.comm.message_header import describe
from vitrail.comm.payload import from_bytes, size_of, to_bytes
from vitrail.comm.transport import Part
from vitrail.errors import StaleVersion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.comm.trace.recording import Recorder
    from vitrail.comm.transport import Posting, Witness
    from vitrail.comm.work import PostedWork


class ChannelOwner(Protocol):
    """The members of a communicator that its channels use."""

    rank: int
    device: torch.device
    checksums: bool
    trace: Recorder

    def open_domain(self, domain: str) -> None:
        """Begin an ordering domain."""

    def enter(self, call: str) -> None:
        """Refuse the call if the run was revoked or closed."""

    def refuse(self, reason: str) -> NoReturn:
        """Abort the run and raise a ``ProtocolError``."""

    def post(
        self,
        domain: str,
        seq: int,
        call: str,
        parts: Sequence[Part],
        mine: Mapping[int, Tensor],
        witness: Witness,
        finish: Callable[[Posting], None],
    ) -> PostedWork:
        """Post one operation of a domain; see ``RankCommunicator.post``."""


class VersionedChannel:
    """A ``Channel`` over a communicator's transport, with an ordering domain of its own."""

    def __init__(
        self,
        owner: ChannelOwner,
        domain: str,
        name: str,
        src: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        max_staleness: int,
    ):
        import torch

        self._owner, self.domain = owner, domain
        self.name, self.src, self.max_staleness = name, src, max_staleness
        self._like = torch.empty(shape, dtype=dtype, device=owner.device)
        self._slots: dict[int, tuple[PostedWork, Tensor]] = {}
        self._last = self._complete = -1
        owner.open_domain(domain)

    @property
    def slots(self) -> int:
        """Number of versions kept: those that may be read, and one in transit."""
        return self.max_staleness + 2

    def publish(self, version: int, tensor: Tensor | None) -> PostedWork:
        """Post a version; see ``Channel.publish``."""
        where = f"channel {self.name!r}: publish({version})"
        self._owner.enter(where)
        is_source = self._owner.rank == self.src
        if version != self._last + 1:
            self._owner.refuse(f"{where} after version {self._last}; versions follow each other")
        if is_source != (tensor is not None):
            self._owner.refuse(f"{where}: rank {self.src} passes the value, the others None")
        if tensor is not None and describe(tensor) != describe(self._like):
            self._owner.refuse(f"{where}: the channel carries {describe(self._like)}, got {describe(tensor)}")
        self._make_room(version)
        checksums = self._owner.checksums
        kept = self._like.clone()

        def finish(posting: Posting) -> None:
            from_bytes(posting.part(0), [kept], checksums, where)

        call = f"channel {self.name!r} version {version} ({describe(self._like)}, src={self.src})"
        work = self._post(version, call, tensor, finish)
        if is_source:
            self._owner.trace.flow("s", self.name, version)
        self._slots[version] = work, kept
        self._last = version
        return work

    def fetch(self, version: int, *, timeout: float | None = None) -> Tensor:
        """Return a private copy of exactly this version; blocks until it has arrived.

        Raises:
            ValueError: For a negative version.
            ProtocolError: For a version that was not posted on this rank.
            StaleVersion: For a version that is no longer kept.
        """
        if version < 0:
            raise ValueError(f"channel {self.name!r}: there is no version {version}")
        self._owner.enter(f"channel {self.name!r}: fetch({version})")
        if version > self._last:
            self._owner.refuse(
                f"channel {self.name!r}: fetch({version}) before it was posted; the last is {self._last}"
            )
        self._refuse_stale(version)
        work, kept = self._slots[version]
        work.wait(timeout)
        self._owner.trace.flow("f", self.name, version)
        self._owner.trace.count("staleness", self._last - version)
        return kept.clone()

    def latest(self) -> int:
        """Return the largest version such that all up to it are complete here; -1 if none is."""
        self._owner.enter(f"channel {self.name!r}: latest()")
        while self._complete < self._last and self._is_here(self._complete + 1):
            self._complete += 1
        return self._complete

    def fetch_within(self, now: int, *, timeout: float | None = None) -> tuple[int, Tensor]:
        """Return the newest complete version in [now - max_staleness, now], with its number.

        Raises:
            ValueError: For a negative ``now``.
            ProtocolError: If no version in this range was posted on this rank.
            StaleVersion: If ``now`` is no longer kept.
        """
        if now < 0:
            raise ValueError(f"channel {self.name!r}: there is no version {now}")
        self._owner.enter(f"channel {self.name!r}: fetch_within({now})")
        self._refuse_stale(now)
        oldest = max(0, now - self.max_staleness, self._last - self.max_staleness)
        newest = min(now, self._last)
        if newest < oldest:
            self._owner.refuse(f"channel {self.name!r}: no version in [{oldest}, {now}] was posted here")
        here = [version for version in range(oldest, newest + 1) if self._is_here(version)]
        version = max(here, default=oldest)
        return version, self.fetch(version, timeout=timeout)

    def _is_here(self, version: int) -> bool:
        """Whether a version is complete; versions that left their slot were."""
        if version not in self._slots:
            return True
        work, _ = self._slots[version]
        return work.poll() and work.exception() is None

    # ------------------------------------------------------------------ for the communicator

    def progress(self) -> str:
        """Return what all ranks must have posted before the channel closes."""
        return f"channel {self.name!r} up to version {self._last}"

    def begin_close(self) -> PostedWork:
        """Post the end of the channel's domain, in the form of the next version."""
        like = self._like.clone() if self._owner.rank == self.src else None
        call = f"close() of channel {self.name!r} after version {self._last}"
        return self._post(self._last + 1, call, like, lambda posting: posting.release())

    def drain(self) -> None:
        """Wait for versions in transit and release all slots; every rank must have posted everything."""
        for work, _ in self._slots.values():
            work.finish()
        self._slots.clear()

    def _post(self, version: int, call: str, tensor: Tensor | None, finish: Callable[[Posting], None]) -> PostedWork:
        checksums = self._owner.checksums
        part = Part(self.src, size_of([self._like], checksums))
        mine = {} if tensor is None else {0: to_bytes([tensor], checksums)}
        return self._owner.post(self.domain, version, call, [part], mine, "sources", finish)

    def _refuse_stale(self, version: int) -> None:
        oldest = self._last - self.max_staleness
        if version < oldest:
            raise StaleVersion(f"channel {self.name!r}: version {version} is gone; the oldest kept is {oldest}")

    def _make_room(self, version: int) -> None:
        """Wait until every rank has posted the version whose slot is reused."""
        old = version - self.slots
        if old in self._slots:
            self._slots.pop(old)[0].retire()
