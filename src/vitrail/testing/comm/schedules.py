"""Schedules that Hypothesis draws, so that a failure shrinks to few events; how many were explored."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from typing import Literal

from attrs import define, evolve, field
from hypothesis import strategies as st

from vitrail.comm.backends.virtual_schedule import Fault

UNIT_S = 1e-3  # of drawn delays, in virtual seconds
explored = {"virtual": 0, "threads": 0, "processes": 0}  # runs, by what the ranks are
begun = time.monotonic()


@define
class DrawnSchedule:
    """Chance as a list of small numbers; once they are used up: the first rank, at once, no fault.

    Attributes:
        order: Which of the ranks that can run does so.
        delays: How long a message travels, in units.
        faults: What befalls a rank at a point.
    """

    order: bytes = b""
    delays: bytes = b""
    faults: dict[tuple[int, int], Fault] = field(factory=dict)
    unit: float = UNIT_S
    turns: int = field(default=0, init=False)
    messages: int = field(default=0, init=False)
    struck: list[tuple[int, int, Fault]] = field(factory=list, init=False)  # the faults that came about

    def choose(self, ready: Sequence[int]) -> int:
        """The rank that goes on."""
        self.turns += 1
        return ready[self.order[self.turns - 1] % len(ready)] if self.turns <= len(self.order) else ready[0]

    def delay(self, source: int, destination: int, nbytes: int) -> float:
        """Virtual seconds of a message."""
        self.messages += 1
        return self.delays[self.messages - 1] * self.unit if self.messages <= len(self.delays) else 0.0

    def fault(self, rank: int, point: int) -> Fault | None:
        """What befalls a rank at its point-th call."""
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
        """The longest delay, in virtual seconds."""
        return max(self.delays, default=0) * self.unit

    def again(self) -> DrawnSchedule:
        """The same schedule from its beginning."""
        return evolve(self)

    def stirred(self, number: int) -> DrawnSchedule:
        """The same faults in another order and with other delays, longer than Hypothesis likes to draw them."""
        chance = random.Random(repr((number, self.order, self.delays)))
        return evolve(self, order=chance.randbytes(200), delays=chance.randbytes(200))

    def healed(self) -> DrawnSchedule:
        """The same schedule from its beginning, without faults."""
        return evolve(self, faults={})


STALLS = st.sampled_from([0.5, 3.0, 50.0, math.inf])


def faults(
    kinds: Sequence[Literal["crash", "raise", "stall"]] = ("crash", "raise", "stall"),
    seconds: st.SearchStrategy[float] = STALLS,
) -> st.SearchStrategy[Fault]:
    """What befalls a rank; stalls up to half of a runner's timeout, or for ever."""
    stall = st.builds(Fault, st.just("stall"), seconds)
    return st.one_of(*(stall if kind == "stall" else st.just(Fault(kind)) for kind in kinds))


def schedules(
    fault: st.SearchStrategy[Fault] | None = None, max_faults: int = 2, max_rank: int = 3, max_point: int = 24
) -> st.SearchStrategy[DrawnSchedule]:
    """Any order and any delays; with faults at some points if they are given."""
    points = st.tuples(st.integers(0, max_rank), st.integers(1, max_point))
    struck = st.just({}) if fault is None else st.dictionaries(points, fault, max_size=max_faults)
    return st.builds(DrawnSchedule, st.binary(max_size=48), st.binary(max_size=32), struck)
