"""Dataflows to draw: units of steps, what each needs of the step before, and a program that shows what it read."""

import hashlib

import torch
from attrs import frozen
from hypothesis import strategies as st

from vitrail.comm.dataflow import AHEAD, dataflow_order
from vitrail.comm.dataflow_exchange import VOTE, DataflowExchange
from vitrail.comm.trace.cost_model import spend

SPEEDS = st.sampled_from([0.25, 0.5, 1.0, 2.0])
RANKS = st.integers(1, 5)


@frozen
class Flow:
    """Costs and needs of the units of every step, and the relative speeds of the ranks."""

    costs: tuple
    needs: tuple
    speeds: tuple

    @property
    def num_steps(self):
        return len(self.costs)

    @property
    def order(self):
        return dataflow_order(self.costs, self.needs, self.speeds)

    def serial(self):
        """The value of every unit on one rank, by (step, unit)."""
        values = {}
        for step, needs in enumerate(self.needs):
            for unit, own in enumerate(needs):
                values[step, unit] = value_of(step, unit, [values[step - 1, need] for need in own] if step else [])
        return values


def value_of(step, unit, read):
    """A number that shows every bit of what a unit read, in order."""
    text = f"{step} {unit} {read}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest(), "big")


@st.composite
def flows(draw, ranks=RANKS, most_steps=7, most_units=6):
    """Any needs at all: windows that move from step to step overlap in any way. A unit always needs one at least."""
    counts = draw(st.lists(st.integers(1, most_units), min_size=1, max_size=most_steps))
    needs, costs = [], []
    for step, count in enumerate(counts):
        before = counts[step - 1] if step else 0
        chosen = st.sets(st.integers(0, before - 1), min_size=1) if before else st.just(set())
        needs.append(tuple(tuple(sorted(draw(chosen))) for _ in range(count)))
        costs.append(tuple(draw(st.lists(st.sampled_from([1.0, 1.5, 3.0]), min_size=count, max_size=count))))
    world = draw(ranks)
    return Flow(tuple(costs), tuple(needs), tuple(draw(st.lists(SPEEDS, min_size=world, max_size=world))))


def grid(rows, columns, steps, speeds, cost=1.0):
    """Windows of half overlap: each overlaps its eight neighbours."""
    places = [(i, j) for i in range(rows) for j in range(columns)]
    needs = tuple(tuple(n for n, (k, m) in enumerate(places) if abs(k - i) <= 1 and abs(m - j) <= 1) for i, j in places)
    return Flow((tuple(cost for _ in places),) * steps, (needs,) * steps, tuple(speeds))


def is_extension(flow, order):
    """Whether every unit stands once, behind all that it needs."""
    place = {(unit.step, unit.unit): number for number, unit in enumerate(order) if unit.unit != VOTE}
    whole = {(step, unit) for step, costs in enumerate(flow.costs) for unit in range(len(costs))}
    if place.keys() != whole or len(place) != sum(unit.unit != VOTE for unit in order):
        return False
    for step, unit in whole:
        needs = [(step - 1, need) for need in flow.needs[step][unit]] if step else []
        earlier = [each for each in whole if each[0] <= step - AHEAD]
        if any(place[each] >= place[step, unit] for each in [*needs, *earlier]):
            return False
    return True


class Steps:
    """The program of one rank: compute own units of each step as the engine does, and record what happened.

    Args:
        communicator: This rank's communicator.
        flow: The work.
        seconds: Virtual seconds of a unit, by (step, unit, rank); its cost at the rank's speed if None.
        stop_at: Rank 0 wants to stop from its n-th vote on.
    """

    def __init__(self, communicator, flow, seconds=None, stop_at=None):
        self.communicator, self.flow, self.seconds = communicator, flow, seconds
        self.read, self.values, self.kept, self.stopped = {}, {}, [], None
        self.votes, self.stop_at, self.done = 0, stop_at, 0
        like = lambda unit: torch.zeros(1, dtype=torch.int64)  # noqa: E731
        self.exchange = DataflowExchange(communicator, flow.order, flow.needs, like, self.wants_stop)

    def wants_stop(self):
        self.votes += 1
        return self.stop_at is not None and self.votes > self.stop_at

    def run(self):
        """The values of all units of the steps that are done, whether and where it stopped, what was kept at most."""
        exchange = self.exchange
        for step in range(self.flow.num_steps):
            if exchange.stops_before(step):
                self.stopped = step
                break
            self.communicator.note(f"step {step}")
            self.complete(step - AHEAD)
            while (unit := exchange.next(step)) is not None:
                self.complete(unit.step - AHEAD)
                for each in exchange.ready(unit):
                    self.compute(each)
                self.kept.append(len({each.step for each in exchange._works if each.unit != VOTE}))
        self.complete(exchange.num_steps - 1)
        exchange.finish()
        return self.values, self.stopped, max(self.kept, default=0)

    def compute(self, unit):
        needs = self.flow.needs[unit.step][unit.unit] if unit.step else ()
        read = [self.value(unit.step - 1, need) for need in needs]
        cost = self.flow.costs[unit.step][unit.unit] / self.flow.speeds[unit.owner]
        spend(self.communicator, cost if self.seconds is None else self.seconds(unit))
        value = value_of(unit.step, unit.unit, read)
        self.exchange.send(unit, torch.tensor([value]))

    def value(self, step, unit):
        if (step, unit) in self.values:
            return self.values[step, unit]
        (found,) = [each for each in self.exchange.units(step) if each.unit == unit]
        assert self.exchange.has(found)
        return int(self.exchange.take(found))

    def complete(self, last):
        for step in range(self.done, last + 1):
            self.exchange.wait(self.exchange.units(step))
            self.collect(step)
            self.done = step + 1

    def collect(self, step):
        for unit in self.exchange.units(step):
            self.values[step, unit.unit] = int(self.exchange.take(unit))
        self.exchange.drop(step)
