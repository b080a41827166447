"""Order of work without a barrier between steps: a pure function, so that every rank knows it without communication.

A unit of a step needs some units of the step before, not all: the windows that it overlaps. All units of some steps
are put in one order by list scheduling (Graham, 1969, "Bounds on Multiprocessing Timing Anomalies", sec. 2): a free
rank takes a unit whose needs are done, of the earliest step first and in a step the one that most others wait for.
The order is by the time at which units would be done, so it is a linear extension of the needs, and a rank's own part
of it is the order in which the rank computes. Results do not depend on it.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Sequence

from attrs import define, field, frozen

from vitrail.comm.partition import check_speeds

AHEAD = 2  # a unit is computed once every unit of so many steps before is; bounds what is kept for units to come
Needs = Sequence[Sequence[int]]  # by unit, the units of the step before


@frozen(order=True)
class StepUnit:
    """A unit of work at a step, and the rank that computes it.

    Attributes:
        step: Index of the step, from 0 on.
        unit: Index of the unit in the step.
        owner: The rank.
    """

    step: int
    unit: int
    owner: int = field(order=False)


def dataflow_order(
    costs: Sequence[Sequence[float]], needs: Sequence[Needs], speeds: Sequence[float], ahead: int = AHEAD
) -> tuple[StepUnit, ...]:
    """Return all units of some steps with their ranks, in the order in which they would be done.

    Args:
        costs: Costs of the units of every step, positive.
        needs: Of every unit of every step, the units of the step before that it needs; those of the first step are
            unused.
        speeds: Relative speeds of the ranks; their number is the world size.
        ahead: A unit of step t needs all units of step t - ahead, too.

    Raises:
        ConfigError: If a speed is not a positive number.
    """
    check_speeds(speeds)
    if len(speeds) == 1:  # in canonical order
        return tuple(StepUnit(step, unit, 0) for step, own in enumerate(costs) for unit in range(len(own)))
    return _Scheduling(costs, needs, speeds, ahead).order()


@define(eq=False)
class _Scheduling:
    """State of list scheduling.

    Attributes:
        ready: Units whose needs are done and that no rank has, the first to be taken first: (step, priority, unit).
        held: Units whose needs are done, by the step that must be whole before.
        running: Units that ranks compute: (end, number, rank, step, unit).
        free: When each rank will be free.
    """

    costs: Sequence[Sequence[float]]
    needs: Sequence[Needs]
    speeds: Sequence[float]
    ahead: int
    ready: list[tuple[int, int, int]] = field(factory=list)
    held: dict[int, list[tuple[int, int, int]]] = field(factory=dict)
    running: list[tuple[float, int, int, int, int]] = field(factory=list)
    free: list[float] = field(factory=list)
    _awaited: list[list[int]] = field(factory=list)  # needs that are not done, by step and unit
    _dependents: list[list[list[int]]] = field(factory=list)  # units of the next step, by step and unit
    _left: list[int] = field(factory=list)  # units that are not done, by step

    def order(self) -> tuple[StepUnit, ...]:
        """Return the order; see ``dataflow_order``."""
        self._prepare()
        found: list[StepUnit] = []
        now, started = 0.0, 0
        while True:
            started = self._start(now, started)
            if not self.running:
                return tuple(found)
            now = self.running[0][0]
            while self.running and self.running[0][0] <= now:
                _, _, rank, step, unit = heapq.heappop(self.running)
                found.append(StepUnit(step, unit, rank))
                self._finish(step, unit)

    def _prepare(self) -> None:
        count = len(self.costs)
        self.free = [0.0] * len(self.speeds)
        self._left = [len(costs) for costs in self.costs]
        self._awaited = [[len(set(own)) * (step > 0) for own in self.needs[step]] for step in range(count)]
        self._dependents = [[[] for _ in costs] for costs in self.costs]
        for step in range(1, count):
            for unit, own in enumerate(self.needs[step]):
                for need in set(own):
                    self._dependents[step - 1][need].append(unit)
        for step in range(count):
            for unit, awaited in enumerate(self._awaited[step]):
                if not awaited:
                    self._release(step, unit)

    def _release(self, step: int, unit: int) -> None:
        """Make a unit ready whose needs are done, or hold it until all of an earlier step is."""
        item = (step, -len(self._dependents[step][unit]), unit)
        whole = step - self.ahead
        if whole >= 0 and any(self._left[: whole + 1]):
            self.held.setdefault(whole, []).append(item)
        else:
            insort(self.ready, item)

    def _start(self, now: float, started: int) -> int:
        """Give units to free ranks, unless a rank that is still busy would have them done sooner."""
        ends = [max(now, end) for end in self.free]
        idle = sum(end <= now for end in self.free)
        for item in self.ready.copy() if idle else ():
            step, _, unit = item
            cost = self.costs[step][unit]
            end, rank = min(
                (end + cost / speed, r) for r, (end, speed) in enumerate(zip(ends, self.speeds, strict=True))
            )
            ends[rank] = end
            if self.free[rank] > now:  # it would take this unit later
                continue
            self.free[rank] = end
            self.ready.remove(item)
            heapq.heappush(self.running, (end, started, rank, step, unit))
            started, idle = started + 1, idle - 1
            if not idle:
                break
        return started

    def _finish(self, step: int, unit: int) -> None:
        """Record that a unit is done, and make ready what waited for it."""
        self._left[step] -= 1
        if step + 1 < len(self.costs):
            for dependent in self._dependents[step][unit]:
                self._awaited[step + 1][dependent] -= 1
                if not self._awaited[step + 1][dependent]:
                    self._release(step + 1, dependent)
        for whole in sorted(self.held):
            if any(self._left[: whole + 1]):
                break
            for item in self.held.pop(whole):
                insort(self.ready, item)
