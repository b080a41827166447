"""Safety, of what only a simulation can tell: who is to blame, and what is refused before anything is sent (S6, S7)."""

import pytest
import torch
from hypothesis import strategies as st
from runners import law, simulate

from vitrail.errors import CommAborted, ProtocolError
from vitrail.testing.comm.laws.safety import DEVIATIONS
from vitrail.testing.comm.schedules import schedules
from vitrail.testing.comm.telling import RecordedCommunicator


@law(simulate, kind=st.sampled_from(sorted(DEVIATIONS)), odd=st.integers(0, 3), schedule=schedules())
def test_s6_of_four_ranks_the_odd_one_out_is_to_blame(run, kind, odd, schedule):
    """It comes last, so that the other three headers are known; whoever finds out, it is the culprit."""

    def program(communicator):
        if communicator.rank == odd:
            communicator._transport.spend(1.0)
        is_odd, source = communicator.rank == odd, (odd + 1) % 4
        DEVIATIONS[kind](RecordedCommunicator(communicator), is_odd, odd, source, [])
        if not (is_odd and kind == "end"):
            communicator.barrier()

    outcome = run(4, program, schedule)
    assert outcome.abort.culprit == odd
    with pytest.raises(ProtocolError, match=r"ranks disagree: rank . calls .*, (rank .|another rank) calls "):
        outcome.values()


@pytest.mark.parametrize("wrong", ["missing", "foreign", "shape", "out", "unknown"])
def test_s7_keys_that_do_not_fit_are_refused_before_anything_is_sent(wrong):
    def program(communicator):
        owner = {0: 0, 1: 1}
        out = {key: torch.full((2,), -1.0) for key in owner}
        mine = {communicator.rank: torch.ones(2)}
        if communicator.rank == 1:
            changed = {
                "missing": ({}, out),
                "foreign": ({0: torch.ones(2), 1: torch.ones(2)}, out),
                "shape": ({1: torch.ones(3)}, out),
                "out": (mine, {0: out[0]}),
                "unknown": ({1: torch.ones(2), "new": torch.ones(2)}, out),
            }
            mine, out = changed[wrong]
        communicator.all_gather_into(out, mine, owner)

    outcome = simulate(2, program)
    assert isinstance(outcome.errors[1], ProtocolError)
    assert "do not fit what rank 1 owns or receives" in str(outcome.errors[1])
    assert isinstance(outcome.errors[0], CommAborted) and outcome.errors[0].culprit == 1
