"""Whole programs on a clock that can be turned: overtaking messages, deadlocks, traces, faults (E5, C1, L2, L4)."""

import math
import pickle

import attrs
from hypothesis import strategies as st
from runners import TIMEOUT_S, clean, law, simulate

from vitrail.comm.backends.virtual_schedule import SeededSchedule, SimulatedCrash, SimulatedError
from vitrail.errors import CommAborted, CommTimeout
from vitrail.testing.comm.bench import Ended, LawReport
from vitrail.testing.comm.laws.whole_programs import check_program
from vitrail.testing.comm.programs import Player, outcome_of, programs, sized_programs
from vitrail.testing.comm.schedules import faults, schedules


def play(ops):
    return lambda communicator: Player(communicator).play(ops)


def check(ops, values):
    reports = {rank: LawReport(result=value, is_over=True) for rank, value in enumerate(values)}
    check_program(ops, Ended(len(values), reports, values, None))


@law(simulate, drawn=sized_programs(max_world=8), seed=st.integers(0, 2**32), latency=st.sampled_from([0.0, 1e-3, 5.0]))
def test_c1_messages_that_overtake_each_other_change_nothing(run, drawn, seed, latency):
    world, ops = drawn
    check(ops, clean(run(world, play(ops), SeededSchedule(seed, latency), timeout=1e9)))


@law(simulate, drawn=sized_programs(max_world=8), schedule=schedules())
def test_l2_no_schedule_ends_in_a_deadlock(run, drawn, schedule):
    """Without a timeout: only a deadlock could end the run early."""
    world, ops = drawn
    check(ops, clean(run(world, play(ops), schedule, timeout=math.inf)))


@law(simulate, ops=programs(3), schedule=schedules(faults(("stall",), st.sampled_from([0.5, 3.0]))))
def test_e5_the_same_schedule_gives_the_same_trace_byte_for_byte(run, ops, schedule):
    outcomes = [run(3, play(ops), schedule.again()) for _ in range(2)]
    first, second = (pickle.dumps([attrs.asdict(t) | {"clock": 0} for t in o.traces]) for o in outcomes)
    assert len(outcomes[0].traces[0].spans) > 0
    assert first == second
    assert outcomes[0].makespan == outcomes[1].makespan


@law(simulate, ops=programs(3), schedule=schedules(faults(), max_faults=2, max_rank=2))
def test_l4_after_faults_the_ranks_end_with_the_culprits_name_and_once_healed_the_run_finishes(run, ops, schedule):
    """Safety with faults, then liveness without."""
    outcome = run(3, play(ops), schedule)
    struck = {rank for rank, _, fault in schedule.struck if fault.kind != "stall" or fault.seconds > TIMEOUT_S}
    if not struck:
        check(ops, clean(outcome))
    else:
        _check_failed(ops, outcome, struck)
    check(ops, clean(run(3, play(ops), schedule.healed())))


def _check_failed(ops, outcome, struck):
    seen, _ = outcome_of(ops)
    for value, _ in outcome.results.values():  # of a rank that needed nothing of the lost one any more
        assert all(value[index] == seen[index] for index in value)
    for rank, error in outcome.errors.items():
        assert isinstance(error, (CommAborted, CommTimeout, SimulatedCrash, SimulatedError)), (rank, error)
        if isinstance(error, CommAborted):
            assert error.culprit in struck
        if isinstance(error, (SimulatedCrash, SimulatedError)):
            assert rank in struck
    if outcome.abort is not None:
        assert outcome.abort.culprit in struck
