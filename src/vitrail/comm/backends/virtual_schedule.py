"""Random choices of a simulated run: the next rank, delays of messages, faults of ranks."""

from __future__ import annotations

import random  # noqa: TID251 - chance on the wire, never in a picture
from collections.abc import Sequence
from typing import Literal, Protocol

from attrs import define, field, frozen


@frozen
class Fault:
    """A fault of a rank at one of its calls."""

    kind: Literal["crash", "raise", "stall"]
    seconds: float = 0.0  # duration of a stall, virtual; inf for a rank that hangs


class Schedule(Protocol):
    """Decides order, delays and faults of a simulated run."""

    def choose(self, ready: Sequence[int]) -> int:
        """Return one of the ranks that could run now."""

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Return the virtual seconds that a message is in transit.

        Args:
            source: Rank that sends.
            destination: Rank that receives.
            nbytes: Size of the message.
        """

    def fault(self, rank: int, point: int) -> Fault | None:
        """Return the fault of a rank at its point-th call; None for none."""


@define
class SeededSchedule:
    """Random order and delays from a seed, without faults.

    Attributes:
        seed: The same seed gives the same run.
        latency: Mean delay of a message, in virtual seconds.
    """

    seed: int = 0
    latency: float = 1e-3
    _random: random.Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - not used for secrets

    def choose(self, ready: Sequence[int]) -> int:
        """Return a random rank of those that could run."""
        return self._random.choice(ready)

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Return an exponentially distributed delay, so that messages overtake each other; see ``Schedule.delay``."""
        return self._random.expovariate(1.0) * self.latency

    def fault(self, rank: int, point: int) -> Fault | None:
        """Return None: no faults."""
        return None


class SimulatedCrash(BaseException):
    """Ends a rank's thread as if its process had died: the run's handlers ignore it."""


class SimulatedError(RuntimeError):
    """The error that a rank raises when the schedule requests it."""
