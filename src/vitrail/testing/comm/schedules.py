"""Schedules drawn by Hypothesis, so that a failure shrinks to few events, and counts of explored runs."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import Literal

from attrs import define, evolve, field
from hypothesis import strategies as st

from vitrail.comm.backends.virtual_schedule import Fault

UNIT_S = 1e-3  # unit of drawn delays in virtual seconds
explored = {"virtual": 0, "threads": 0, "processes": 0}  # number of runs by kind of ranks
begun = time.monotonic()  # begin of the count


@define
class DrawnSchedule:
    """Schedule as lists of small integers; after their end the first ready rank runs and messages take no time.

    Attributes:
        order: For each turn the index of the ready rank that runs, modulo their number.
        delays: Travel time of each message, in units.
        faults: Fault of a rank at its n-th call, by (rank, n).
        unit: Virtual seconds of a unit of delay.
        turns: Number of turns so far.
        messages: Number of messages so far.
        struck: Faults that occurred: rank, call, fault.
    """

    order: bytes = b""
    delays: bytes = b""
    faults: dict[tuple[int, int], Fault] = field(factory=dict)
    unit: float = UNIT_S
    turns: int = field(default=0, init=False)
    messages: int = field(default=0, init=False)
    struck: list[tuple[int, int, Fault]] = field(factory=list, init=False)

    def choose(self, ready: Sequence[int]) -> int:
        """Choose the rank that runs next among those that are ready."""
        self.turns += 1
        return ready[self.order[self.turns - 1] % len(ready)] if self.turns <= len(self.order) else ready[0]

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Return the travel time of the next message in virtual seconds.

        Args:
            source: The sending rank; ignored.
            destination: The receiving rank; ignored.
            nbytes: Size of the message; ignored.
        """
        self.messages += 1
        return self.delays[self.messages - 1] * self.unit if self.messages <= len(self.delays) else 0.0

    def fault(self, rank: int, point: int) -> Fault | None:
        """Return the fault of a rank at its ``point``-th call, if any, and record it."""
        fault = self.faults.get((rank, point))
        if fault is not None:
            self.struck.append((rank, point, fault))
        return fault

    def __str__(self) -> str:
        delays = enumerate(self.delays[: self.messages], 1)
        lines = [f"message {number} takes {each * self.unit:g} s" for number, each in delays if each]
        order = list(self.order[: self.turns])
        if any(order):
            lines.append(f"where several ranks can go on it is the turn of {order}, counted round")
        lines += [f"rank {rank}: {fault.kind} at its call {point}" for rank, point, fault in self.struck]
        return "\n".join(["schedule", *(f"      {each}" for each in lines)]) if lines else ""

    @property
    def longest(self) -> float:
        """The longest delay in virtual seconds."""
        return max(self.delays, default=0) * self.unit

    def again(self) -> DrawnSchedule:
        """Return the same schedule, rewound to its beginning."""
        return evolve(self)

    def stirred(self, number: int) -> DrawnSchedule:
        """Return a schedule with the same faults and a random order and delays, 200 of each, seeded by ``number``."""
        chance = random.Random(repr((number, self.order, self.delays)))
        return evolve(self, order=chance.randbytes(200), delays=chance.randbytes(200))

    def healed(self) -> DrawnSchedule:
        """Return the same schedule without faults, rewound to its beginning."""
        return evolve(self, faults={})


STALLS = st.sampled_from([0.5, 3.0, 50.0, math.inf])


def faults(
    kinds: Sequence[Literal["crash", "raise", "stall"]] = ("crash", "raise", "stall"),
    seconds: st.SearchStrategy[float] = STALLS,
) -> st.SearchStrategy[Fault]:
    """Return a Hypothesis strategy of faults of the given kinds; ``seconds`` draws the virtual duration of stalls."""
    stall = st.builds(Fault, st.just("stall"), seconds)
    return st.one_of(*(stall if kind == "stall" else st.just(Fault(kind)) for kind in kinds))


def schedules(
    fault: st.SearchStrategy[Fault] | None = None, max_faults: int = 2, max_rank: int = 3, max_point: int = 24
) -> st.SearchStrategy[DrawnSchedule]:
    """Return a Hypothesis strategy of schedules.

    Args:
        fault: Strategy of faults; no faults if None.
        max_faults: Maximum number of faults.
        max_rank: Highest rank that a fault may strike.
        max_point: Latest call of a rank that a fault may strike.
    """
    points = st.tuples(st.integers(0, max_rank), st.integers(1, max_point))
    struck = st.just({}) if fault is None else st.dictionaries(points, fault, max_size=max_faults)
    return st.builds(DrawnSchedule, st.binary(max_size=48), st.binary(max_size=32), struck)
