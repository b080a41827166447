"""A communicator's life: opening, names, one thread, closing; and what a trace and an error say."""

import threading

import pytest
import torch
from hypothesis import strategies as st
from runners import clean, law, simulate, threads
from test_comm_safety import opened

from vitrail.comm import Simulated, solo
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.schedule import SeededSchedule
from vitrail.errors import CommAborted, ProtocolError
from vitrail.testing.comm.payloads import Payload, bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules

SMALL = Payload(torch.int32, (2,))
BOTH = pytest.mark.parametrize("run", [simulate, threads], ids=lambda run: run.name)

THREAD_CALLS = {
    "barrier": lambda c, _ch, _w: c.barrier(),
    "broadcast": lambda c, _ch, _w: c.broadcast(torch.zeros(1), 0),
    "gather": lambda c, _ch, _w: c.all_gather_into({}, {}, {}),
    "split": lambda c, _ch, _w: c.split("x"),
    "channel": lambda c, _ch, _w: c.channel("x", src=0, shape=(), dtype=torch.float32),
    "publish": lambda _c, ch, _w: ch.publish(1, None),
    "fetch": lambda _c, ch, _w: ch.fetch(0),
    "latest": lambda _c, ch, _w: ch.latest(),
    "within": lambda _c, ch, _w: ch.fetch_within(0),
    "wait": lambda _c, _ch, w: w.wait(),
    "is_completed": lambda _c, _ch, w: w.is_completed(),
    "close": lambda c, _ch, _w: c.close(),
}


@pytest.mark.parametrize("call", THREAD_CALLS)
def test_a_call_from_another_thread_is_refused_and_leaves_no_trace(call):
    """Rule 12; the run goes on as if it had not been."""

    def program(communicator):
        channel = opened(communicator, SMALL)
        channel.publish(0, SMALL.make(0) if communicator.rank == 0 else None)
        tensor = SMALL.make(1) if communicator.rank == 0 else SMALL.blank()
        work, caught = communicator.broadcast(tensor, 0, async_op=True), []

        def elsewhere():
            try:
                THREAD_CALLS[call](communicator, channel, work)
            except ProtocolError as error:
                caught.append(str(error))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        work.wait()
        communicator.barrier()
        assert bits(channel.fetch(0)) == bits(SMALL.make(0))
        channel.publish(1, SMALL.make(1) if communicator.rank == 0 else None)
        assert communicator.split("x").domain == "main/x"
        return [("another thread" in text) for text in caught], communicator.close()

    assert clean(threads(2, program)) == [([True], ())] * 2


@BOTH
def test_after_close_every_call_is_refused(run):
    def program(communicator):
        channel, split = opened(communicator, SMALL), communicator.split("s")
        channel.publish(0, SMALL.make(0) if communicator.rank == 0 else None)
        assert communicator.close() == ()
        calls = [
            communicator.barrier,
            split.barrier,
            lambda: channel.fetch(0),
            lambda: channel.publish(1, None),
            channel.latest,
            lambda: communicator.split("t"),
        ]
        for call in calls:
            with pytest.raises(ProtocolError, match="closed"):
                call()
        assert communicator.close() == split.close() == ()
        communicator.abort("too late to matter")
        communicator.check()
        return True

    assert clean(run(2, program)) == [True, True]


@law(world=st.integers(1, 4), order=st.permutations(range(4)), schedule=schedules())
def test_a_split_may_be_closed_before_its_parent(run, world, order, schedule):
    """By some ranks only, too: the parent's end is the end of what is still open."""

    def program(communicator):
        split = communicator.split("s")
        channel = opened(split, SMALL)
        channel.publish(0, SMALL.make(0) if communicator.rank == 0 else None)
        split.barrier()
        if communicator.rank in order[:2]:
            return communicator.close()
        return split.close() + communicator.close()

    assert clean(run(world, program, schedule)) == [()] * world


@law(world=st.integers(2, 3), short=st.integers(0, 2), by=st.integers(1, 2), schedule=schedules())
def test_ranks_that_published_unequally_often_are_told_at_the_end(run, world, short, by, schedule):
    """Even if nobody ever read the versions that one rank left out."""
    short %= world

    def program(communicator):
        channel = opened(communicator, SMALL, bound=3)
        for version in range(3 - by * (communicator.rank == short)):
            channel.publish(version, SMALL.make(version) if communicator.rank == 0 else None)

    outcome = run(world, program, schedule)
    assert set(outcome.errors) == set(range(world))
    assert {type(error) for error in outcome.errors.values()} <= {ProtocolError, CommAborted}
    assert "close()" in outcome.abort.reason
    assert f"rank {short}" in outcome.abort.reason or world > 2


@BOTH
@pytest.mark.parametrize("case", ["channel twice", "split twice", "both", "bound", "source", "owner"])
def test_what_cannot_be_opened_is_refused(run, case):
    def program(communicator):
        opened(communicator, SMALL, "a")
        communicator.split("b")
        calls = {
            "channel twice": lambda: opened(communicator, SMALL, "a"),
            "split twice": lambda: communicator.split("b"),
            "both": lambda: communicator.split("a"),
            "bound": lambda: opened(communicator, SMALL, "c", bound=-1),
            "source": lambda: opened(communicator, SMALL, "c", src=2),
            "owner": lambda: communicator.all_gather_into({0: torch.zeros(1)}, {}, {0: -1}),
        }
        calls[case]()

    outcome = run(2, program)
    told = {"bound": "0 or more", "source": "rank 2 does not exist", "owner": "rank -1 does not exist"}
    with pytest.raises(ProtocolError, match=told.get(case, "is taken")):
        outcome.values()


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
    from vitrail.comm.schedule import Fault, SimulatedCrash

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
