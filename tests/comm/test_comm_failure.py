"""Failure: who is to blame, how fast the others know, (F1 to F5)."""

import pytest
import torch
from hypothesis import strategies as st
from runners import clean, law, simulate
from test_comm_liveness import relay

from vitrail.comm.backends.simulated import DETECTION_S
from vitrail.comm.backends.virtual_schedule import Fault, SimulatedCrash, SimulatedError
from vitrail.errors import CommAborted
from vitrail.testing.comm.payloads import Payload
from vitrail.testing.comm.programs import REST_S, Player, programs
from vitrail.testing.comm.schedules import schedules

SMALL = Payload(torch.int32, (2,))
BOUND_S = 2.0  # from the fault to the last rank's end


def ending(program, ends):
    """A program that notes when each rank ended, and of what."""

    def noted(communicator):
        try:
            return program(communicator)
        finally:
            ends[communicator.rank] = communicator._transport.clock()

    return noted


def play(ops):
    return lambda communicator: Player(communicator).play(ops)


def rested(ops, rank):
    """Virtual seconds that a rank rests in a program."""
    return sum(op.number * REST_S for op in ops if op.kind == "rest" and op.at == rank)


FAULTS = {"crash": SimulatedCrash, "raise": SimulatedError}


@law(
    simulate,
    ops=programs(3),
    kind=st.sampled_from(sorted(FAULTS)),
    rank=st.integers(0, 2),
    point=st.integers(1, 20),
    schedule=schedules(),
)
def test_f1_f2_when_a_rank_dies_or_raises_all_others_end_soon_and_name_it(run, ops, kind, rank, point, schedule):
    schedule.faults = {(rank, point): Fault(kind)}
    ends = {}
    outcome = run(3, ending(play(ops), ends), schedule)
    if not schedule.struck:
        clean(outcome)
        return
    assert type(outcome.errors[rank]) is FAULTS[kind]
    waited = {other: error for other, error in outcome.errors.items() if other != rank}
    for error in waited.values():
        assert type(error) is CommAborted
        assert error.culprit == rank
        assert ("died" if kind == "crash" else "SimulatedError: at point") in error.reason
    fault_known = DETECTION_S if kind == "crash" else 0.0
    latest = max(end - rested(ops, other) for other, end in ends.items())  # who rests hears of nothing
    assert latest <= ends[rank] + fault_known + schedule.longest < ends[rank] + BOUND_S
    if waited:
        with pytest.raises(FAULTS[kind]):
            outcome.values()


@law(error=st.sampled_from([SystemExit(3), KeyboardInterrupt(), GeneratorExit(), pytest.fail.Exception("x")]))
def test_f2_so_does_whatever_else_ends_a_program(run, error):
    def program(communicator):
        if communicator.rank == 1:
            raise error
        communicator.barrier()

    outcome = run(2, program)
    assert outcome.errors[1] is error
    assert type(outcome.errors[0]) is CommAborted and outcome.errors[0].culprit == 1


@law(
    simulate,
    ranks=st.permutations(range(4)),
    kinds=st.tuples(*[st.sampled_from(sorted(FAULTS))] * 2),
    points=st.tuples(*[st.integers(1, 12)] * 2),
    schedule=schedules(),
)
def test_f4_of_two_failures_the_first_that_is_known_counts_everywhere(run, ranks, kinds, points, schedule):
    schedule.faults = {(rank, at): Fault(kind) for rank, kind, at in zip(ranks[:2], kinds, points, strict=True)}
    outcome = run(4, relay(6, 1), schedule)
    struck = {rank for rank, *_ in schedule.struck}
    if not struck:
        clean(outcome)
        return
    if outcome.abort is None:  # they died at their very end, when nobody needed them
        assert set(outcome.errors) == struck
        return
    assert outcome.abort.culprit in struck
    assert set(outcome.errors) | set(outcome.results) == set(range(4))
    for rank, error in outcome.errors.items():
        assert type(error) in ({SimulatedCrash, SimulatedError} if rank in struck else {CommAborted})
        if rank not in struck:
            assert (error.culprit, error.reason) == (outcome.abort.culprit, outcome.abort.reason)
