"""One rank alone, seeds, threads and errors of a simulation, and what a trace says."""

import threading

import pytest
import torch
from runners import simulate

from vitrail.comm import InProcess, Simulated, solo
from vitrail.comm.backends.virtual_schedule import SeededSchedule
from vitrail.comm.communicator import RankCommunicator
from vitrail.errors import ProtocolError
from vitrail.testing.comm.schedules import DrawnSchedule


def test_one_rank_alone_needs_no_backend():
    alone = solo("mine")
    assert (alone.rank, alone.world_size, alone.run_id, alone.backend) == (0, 1, "mine", "in-process")
    assert alone.broadcast_object({"a": [1, None]}, 0) == {"a": [1, None]}
    assert alone.close() == ()
    with pytest.raises(ProtocolError, match="closed"):
        alone.barrier()


def test_a_seeded_schedule_is_a_function_of_its_seed():
    def program(communicator):
        for _ in range(3):
            communicator.barrier()

    spans = [Simulated(seed=seed).simulate(3, program).makespan for seed in (1, 1, 2)]
    assert spans[0] == spans[1] != spans[2]
    assert SeededSchedule(0).fault(0, 1) is None


def test_a_simulation_may_raise_errors_of_torch_on_any_rank():
    """Torch walks the stack when it raises; on many ranks, at any depth."""

    def program(communicator):
        for turn in range(communicator.world_size):
            communicator.barrier()
            if communicator.rank == turn:
                with pytest.raises(RuntimeError, match="size of tensor"):
                    torch.zeros(3) + torch.zeros(4)
        return turn

    for seed in range(20):
        assert Simulated(seed=seed).run(4, program) == [3] * 4


def test_a_rank_that_is_dead_does_nothing_more():
    """Not even in its own clean-up."""
    from vitrail.comm.backends.virtual_schedule import Fault, SimulatedCrash

    after = []

    def program(communicator):
        try:
            communicator.barrier()
        finally:
            if communicator.rank == 0:
                communicator.abort("said by a dead rank")
                with pytest.raises(SimulatedCrash):
                    communicator.barrier()
                after.append(True)

    outcome = simulate(2, program, DrawnSchedule(faults={(0, 1): Fault("crash")}))
    assert after == [True]
    assert (outcome.abort.culprit, outcome.abort.reason) == (0, "the rank died")


def test_communicators_of_one_rank_share_a_trace():
    alone = solo()
    split = alone.split("s")
    assert isinstance(split, RankCommunicator)
    assert split.trace is alone.trace


def test_a_schedule_that_fails_fails_the_run():
    class Failing(DrawnSchedule):
        def choose(self, ready):
            if self.messages:
                raise LookupError("whose turn?")
            return ready[0]

    with pytest.raises(LookupError, match="whose turn"):
        simulate(3, lambda communicator: communicator.barrier(), Failing()).values()


def test_a_run_of_threads_leaves_no_threads_behind():
    before = threading.active_count()
    InProcess().run(4, lambda communicator: communicator.barrier())
    assert threading.active_count() == before
