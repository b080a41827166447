"""Dataflow between ranks: the same values as on one, no barrier, bounded versions, and faults that end every rank."""

import math

import pytest
from attrs import evolve
from hypothesis import assume
from hypothesis import strategies as st
from runners import TIMEOUT_S, clean, law, simulate, threads
from test_dataflow_order import makespan

from dataflows import Flow, Steps, flows, grid
from vitrail.comm import InProcess
from vitrail.comm.backends.virtual_schedule import Fault
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.dataflow import AHEAD
from vitrail.comm.dataflow_exchange import HEEDED
from vitrail.comm.trace.cost_model import CostModel, CostSchedule
from vitrail.errors import CommAborted, CommTimeout, ProtocolError
from vitrail.testing.comm.schedules import DrawnSchedule, schedules


def play(flow, **options):
    return lambda communicator: Steps(communicator, flow, **options).run()


def seconds_of(durations):
    """Seconds of every unit, from a drawn list that is used again and again."""
    return lambda unit: durations[(7 * unit.step + 3 * unit.unit + unit.owner) % len(durations)]


DURATIONS = st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=1, max_size=8)


@law(simulate, threads, flow=flows(), durations=DURATIONS, schedule=schedules())
def test_every_rank_has_the_values_of_one_whatever_the_speeds_and_delays(run, flow, durations, schedule):
    expected = flow.serial()
    outcome = run(len(flow.speeds), play(flow, seconds=seconds_of(durations)), schedule)
    for values, stopped, kept in clean(outcome):
        assert values == expected
        assert stopped is None
        assert kept <= AHEAD + 1


@law(simulate, flow=flows(), durations=DURATIONS)
def test_a_rank_waits_for_what_its_unit_needs_and_for_nothing_else(run, flow, durations):
    """Without latency it computes each unit as soon as it is free and the needs are done: no barrier anywhere."""
    seconds = seconds_of(durations)
    world = len(flow.speeds)
    outcome = run(world, play(flow, seconds=seconds), CostSchedule(CostModel(row_s=1.0), world))
    clean(outcome)
    order, done, free = flow.order, {}, [0.0] * world
    for unit in order:
        needs = [(unit.step - 1, need) for need in flow.needs[unit.step][unit.unit]] if unit.step else []
        needs += [each for each in done if each[0] <= unit.step - AHEAD]
        done[unit.step, unit.unit] = free[unit.owner] = max([free[unit.owner], *(done[n] for n in needs)]) + seconds(
            unit
        )
    assert outcome.makespan == pytest.approx(max(free))


@law(simulate, flow=flows(), stop_at=st.integers(0, 5), durations=DURATIONS, schedule=schedules())
def test_ranks_stop_before_the_same_step_with_all_before_it_whole(run, flow, stop_at, durations, schedule):
    outcome = run(len(flow.speeds), play(flow, seconds=seconds_of(durations), stop_at=stop_at), schedule)
    expected, world = flow.serial(), len(flow.speeds)
    before = stop_at if world == 1 else stop_at + HEEDED
    before = before if before < flow.num_steps else None
    for values, stopped, _ in clean(outcome):
        assert stopped == before
        done = flow.num_steps if stopped is None else stopped
        assert values == {key: value for key, value in expected.items() if key[0] < done}


@law(simulate, flow=flows(ranks=st.integers(2, 5)), data=st.data(), schedule=schedules())
def test_no_rank_is_taken_for_late_that_waits_for_others_or_computes_for_less_than_the_timeout(
    run, flow, data, schedule
):
    """Units of up to 0.9 of the timeout: chains of them last many times as long, and nobody is overdue."""
    long = data.draw(st.lists(st.sampled_from([0.0, 0.5, 0.9]), min_size=1, max_size=6))
    seconds = seconds_of([share * TIMEOUT_S for share in long])
    for values, _, _ in clean(run(len(flow.speeds), play(flow, seconds=seconds), schedule)):
        assert values == flow.serial()


@law(
    simulate,
    flow=flows(ranks=st.integers(2, 5)),
    data=st.data(),
    seconds=st.sampled_from([TIMEOUT_S * 1.5, TIMEOUT_S * 20, math.inf]),
    schedule=schedules(),
)
def test_a_timeout_names_the_rank_that_is_slow_not_one_that_waits_for_it(run, flow, data, seconds, schedule):
    slow = data.draw(st.sampled_from(list(flow.order)))
    spent = lambda unit: seconds if unit == slow else 1.0  # noqa: E731
    outcome = run(len(flow.speeds), play(flow, seconds=spent), schedule)
    assert outcome.errors, "the others waited for longer than the timeout at the latest at the end"
    assert outcome.abort.culprit == slow.owner
    kinds = {rank: type(error) for rank, error in outcome.errors.items()}
    assert CommTimeout in kinds.values() and set(kinds.values()) <= {CommTimeout, CommAborted}
    assert f"relay(unit {slow.unit} of step {slow.step}" in outcome.abort.reason
    assert f"rank {slow.owner} is behind, last seen step" in outcome.abort.reason


@law(
    simulate,
    flow=flows(ranks=st.integers(2, 4)),
    rank=st.integers(0, 3),
    point=st.integers(1, 40),
    kind=st.sampled_from(["crash", "raise"]),
    schedule=schedules(),
)
def test_a_rank_that_dies_or_raises_anywhere_ends_all_and_is_named(run, flow, rank, point, kind, schedule):
    world = len(flow.speeds)
    rank %= world
    schedule.faults = {(rank, point): Fault(kind)}
    outcome = run(world, play(flow, seconds=lambda unit: 1.0), schedule)
    if outcome.abort is None:  # it had ended, or the others had no more need of it
        assert {*outcome.results, rank} == set(range(world))
        return
    assert outcome.abort.culprit == rank
    others = {r: error for r, error in outcome.errors.items() if r != rank}
    assert all(isinstance(error, CommAborted) and error.culprit == rank for error in others.values())
    assert math.isfinite(outcome.makespan)


@law(simulate, threads, flow=flows(ranks=st.integers(2, 4)), schedule=schedules())
def test_ranks_that_mean_different_flows_are_told_and_no_value_is_handed_out(run, flow, schedule):
    world = len(flow.speeds)
    other = evolve(flow, speeds=(*flow.speeds[:-1], 8.0 * flow.speeds[-1]))
    assume([unit.owner for unit in other.order] != [unit.owner for unit in flow.order])

    def program(communicator):
        return Steps(communicator, other if communicator.rank == world - 1 else flow).run()

    outcome = run(world, program, schedule, timeout=5.0)
    assert outcome.errors and outcome.abort is not None
    assert any(isinstance(error, ProtocolError) for error in outcome.errors.values()) or isinstance(
        next(iter(outcome.errors.values())), CommTimeout | CommAborted
    )
    for values, _, _ in outcome.results.values():
        assert values == flow.serial()


def test_one_rank_posts_nothing():
    communicators = []

    def program(communicator):
        communicators.append(communicator)
        return Steps(communicator, grid(3, 3, 4, [1.0])).run()

    ((values, _, _),) = InProcess().run(1, program)
    assert values == grid(3, 3, 4, [1.0]).serial()
    assert {span.name for span in communicators[0].trace.spans} <= {"close()"}


def test_windows_far_apart_may_be_steps_apart():
    """One rank is slow in one corner: the other, whose windows do not touch it yet, goes on, by no more than AHEAD."""
    near = ((0,), (0, 1), (1, 2), (2,))
    flow = Flow(((1.0,) * 4,) * 6, (near,) * 6, (1.0, 1.0))
    ahead = []

    def program(communicator):
        steps = Steps(communicator, flow, seconds=lambda unit: 10.0 if (unit.step, unit.unit) == (1, 0) else 1.0)
        steps.run()
        return [span for span in communicator.trace.spans if span.lane == "comm"]

    outcome = simulate(2, program, DrawnSchedule())
    for spans in clean(outcome):
        ahead.append(
            max(int(s.name.partition(" of step ")[2][:1]) for s in spans if "of step" in s.name and s.begin < 8)
        )
    assert max(ahead) >= 2
    assert outcome.makespan >= makespan(flow, flow.order)


def test_the_exchange_opens_no_domain_of_its_own():
    opened = []
    original = RankCommunicator.open_domain

    class Watched(Steps):
        def compute(self, unit):
            assert not opened
            super().compute(unit)

    RankCommunicator.open_domain = lambda self, domain: opened.append(domain) or original(self, domain)
    try:
        InProcess().run(3, lambda communicator: Watched(communicator, grid(3, 3, 5, [1.0] * 3)).run())
    finally:
        RankCommunicator.open_domain = original
    assert opened == []
