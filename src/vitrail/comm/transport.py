"""What a backend must bring; the semantics are built on it once, for all backends alike.

Every operation, collective or channel, is one *posting*: each rank lays down a header that says what it
believes the operation to be, and some ranks lay down parts, bytes for everybody. A backend moves headers
and parts and can wait; it does not know what they mean.
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
    """One operation as one rank sees it."""

    def is_complete(self) -> bool:
        """Whether all that this rank needs has arrived; never blocks."""

    def conflict(self) -> tuple[int, bytes] | None:
        """Who disagrees, and a header that differs from this rank's; None as long as none is known.

        With the headers of three ranks or more at hand it is the odd one out, which may be this rank itself;
        else the other one.
        """

    def missing(self) -> list[int]:
        """Ranks of which something is awaited."""

    def part(self, index: int) -> Tensor:
        """The bytes of a part, UInt8[Tensor, "nbytes"]; only when complete. Not to be written to."""

    def is_taken(self) -> bool:
        """Whether every rank has posted its share, as far as the backend can tell."""

    def release(self) -> None:
        """Give the posting up: this rank reads it no more."""


class Transport(Protocol):
    """One rank's end of a backend."""

    rank: int
    world_size: int
    backend: str
    device: torch.device

    def clock(self) -> float:
        """Seconds since some moment that all ranks share as well as they can."""

    def open(self, domain: str) -> None:
        """Prepare an ordering domain; every rank calls this in the same order."""

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> Posting:
        """Lay down this rank's share of an operation; does not block.

        Args:
            domain: Operations of one domain are matched by ``seq``, domains independently.
            seq: 0, 1, 2, ... in each domain.
            header: What this rank believes the operation to be.
            parts: All parts, alike on every rank.
            mine: The parts whose source is this rank, by index, UInt8[Tensor, "nbytes"]; not changed later.
            witness: Whose header completion waits for and is compared: all ranks' or the sources'.
        """

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Block until ``ready()``, an abort, or the clock's deadline, whichever is first.

        ``str(ready)`` says what is awaited.
        """

    def abort(self, abort: Abort) -> None:
        """Revoke the run on every rank, from any thread; the first call counts."""

    def aborted(self) -> Abort | None:
        """The abort that is known here, if any."""

    def note(self, text: str) -> None:
        """Where this rank is, for the messages of others."""

    def behind(self) -> tuple[int, str]:
        """The rank that has posted least, and where it was last; this rank unless another has posted less."""

    def shut(self, domains: Sequence[str]) -> None:
        """Give back what domains hold that every rank has closed."""

    def close(self) -> None:
        """Give resources back; nothing is awaited."""
