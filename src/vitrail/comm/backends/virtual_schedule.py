"""What chance decides in a simulated run: who goes next, how long a message travels, what befalls a rank."""

from __future__ import annotations

import random  # noqa: TID251 - what chance decides on the wire, never in a picture
from collections.abc import Sequence
from typing import Literal, Protocol

from attrs import define, field, frozen


@frozen
class Fault:
    """What befalls a rank at a point where it could hand on the baton."""

    kind: Literal["crash", "raise", "stall"]
    seconds: float = 0.0  # of a stall; inf is a rank that hangs


class Schedule(Protocol):
    """Everything that chance decides."""

    def choose(self, ready: Sequence[int]) -> int:
        """One of the ranks that could run now."""

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Virtual seconds that a message travels."""

    def fault(self, rank: int, point: int) -> Fault | None:
        """What befalls a rank at its point-th call."""


@define
class SeededSchedule:
    """Chance from a seed: order, delays, no faults.

    Attributes:
        seed: The same seed gives the same run.
        latency: Mean delay of a message, in virtual seconds.
    """

    seed: int = 0
    latency: float = 1e-3
    _random: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - chance, not secrets

    def choose(self, ready: Sequence[int]) -> int:
        """Any of them."""
        return self._random.choice(ready)

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Exponentially distributed, so that messages overtake each other."""
        return self._random.expovariate(1.0) * self.latency

    def fault(self, rank: int, point: int) -> Fault | None:
        """None."""
        return None


class SimulatedCrash(BaseException):
    """Ends a rank's thread as if its process had died: no handler of the run sees it."""


class SimulatedError(RuntimeError):
    """What a rank raises when the schedule says so."""
