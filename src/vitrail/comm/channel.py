"""Channels: versions of one tensor from one rank, each readable exactly while the bound allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail.comm.header import describe
from vitrail.comm.payload import from_bytes, size_of, to_bytes
from vitrail.comm.transport import Part
from vitrail.errors import StaleVersion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.comm.communicator import RankCommunicator
    from vitrail.comm.transport import Posting
    from vitrail.comm.work import PostedWork


class VersionedChannel:
    """A ``Channel`` over a communicator's transport, with an ordering domain of its own."""

    def __init__(
        self,
        owner: RankCommunicator,
        domain: str,
        name: str,
        src: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        max_staleness: int,
    ):
        import torch

        self._owner, self._domain = owner, domain
        self.name, self.src, self.max_staleness = name, src, max_staleness
        self._like = torch.empty(shape, dtype=dtype)
        self._slots: dict[int, tuple[PostedWork, Tensor]] = {}
        self._last = self._complete = -1
        owner.open_domain(domain)

    @property
    def slots(self) -> int:
        """Versions that are kept: those that may be read, and one under way."""
        return self.max_staleness + 2

    def publish(self, version: int, tensor: Tensor | None) -> PostedWork:
        """Post a version: the source passes the value, the others None."""
        where = f"channel {self.name!r}: publish({version})"
        is_source = self._owner.rank == self.src
        if version != self._last + 1:
            self._owner.refuse(f"{where} after version {self._last}; versions follow each other")
        if is_source != (tensor is not None):
            self._owner.refuse(f"{where}: rank {self.src} passes the value, the others None")
        if tensor is not None and describe(tensor) != describe(self._like):
            self._owner.refuse(f"{where}: the channel carries {describe(self._like)}, got {describe(tensor)}")
        self._make_room(version)
        checksums = self._owner.checksums
        mine = {} if tensor is None else {0: to_bytes([tensor], checksums)}
        kept = self._like.clone()

        def finish(posting: Posting) -> None:
            from_bytes(posting.part(0), [kept], checksums, where)

        part = Part(self.src, size_of([self._like], checksums))
        call = f"channel {self.name!r} version {version} ({describe(self._like)}, src={self.src})"
        work = self._owner.post(self._domain, version, call, [part], mine, "sources", finish)
        if is_source:
            self._owner.trace.flow("s", self.name, version)
        self._slots[version] = work, kept
        self._last = version
        return work

    def fetch(self, version: int, *, timeout: float | None = None) -> Tensor:
        """A private copy of exactly this version; blocks until it is here."""
        if version < 0:
            raise ValueError(f"channel {self.name!r}: there is no version {version}")
        self._owner.check()
        if version > self._last:
            self._owner.refuse(
                f"channel {self.name!r}: fetch({version}) before it was posted; the last is {self._last}"
            )
        if version < self._last - self.max_staleness:
            raise StaleVersion(
                f"channel {self.name!r}: version {version} is older than {self._last} - {self.max_staleness}"
            )
        work, kept = self._slots[version]
        work.wait(timeout)
        self._owner.trace.flow("f", self.name, version)
        self._owner.trace.count("staleness", self._last - version)
        return kept.clone()

    def latest(self) -> int:
        """The largest version such that all up to it are complete here; -1 if none is."""
        while self._complete < self._last and self._is_here(self._complete + 1):
            self._complete += 1
        return self._complete

    def fetch_within(self, now: int, *, timeout: float | None = None) -> tuple[int, Tensor]:
        """The newest complete version in [now - max_staleness, now], with its number."""
        oldest = max(0, now - self.max_staleness, self._last - self.max_staleness)
        newest = min(now, self._last)
        if newest < oldest:
            self._owner.refuse(f"channel {self.name!r}: no version in [{oldest}, {now}] was posted here")
        here = [version for version in range(oldest, newest + 1) if self._is_here(version)]
        version = max(here, default=oldest)
        return version, self.fetch(version, timeout=timeout)

    def _is_here(self, version: int) -> bool:
        """Whether a version is complete; those that left their slot were."""
        if version not in self._slots:
            return True
        work, _ = self._slots[version]
        return work.is_completed() and work.exception() is None

    def _make_room(self, version: int) -> None:
        """Wait until every rank has posted the version whose slot this one takes."""
        old = version - self.slots
        if old in self._slots:
            self._slots.pop(old)[0].retire()
