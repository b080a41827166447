"""Failure: who is to blame, how fast the others know, (F1 to F5)."""

import threading
import time

import pytest
import torch
from hypothesis import strategies as st
from payloads import Payload
from programs import Player, programs
from runners import clean, law, simulate, threads
from schedules import schedules
from test_comm_liveness import relay

from vitrail.comm.schedule import Fault, SimulatedCrash, SimulatedError
from vitrail.comm.world import DETECTION_S
from vitrail.errors import CommAborted, ProtocolError

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
    assert max(ends.values()) <= ends[rank] + fault_known + schedule.longest < ends[rank] + BOUND_S
    if waited:
        with pytest.raises(FAULTS[kind]):
            outcome.values()


@law(threads, world=st.integers(2, 4), rank=st.integers(0, 3), at=st.integers(0, 6))
def test_f2_an_exception_on_one_rank_ends_all_and_is_what_the_caller_gets(run, world, rank, at):
    rank %= world

    def program(communicator):
        channel = communicator.channel("a", src=0, shape=(2,), dtype=torch.int32)
        for step in range(6):
            if (communicator.rank, step) == (rank, at):
                raise KeyError("mine")
            channel.publish(step, SMALL.make(step) if communicator.rank == 0 else None)
            channel.fetch(step)
            communicator.barrier()
        if (communicator.rank, at) == (rank, 6):
            raise KeyError("mine")

    outcome = run(world, program)
    for other in range(world):
        error = outcome.errors[other]
        assert type(error) is (KeyError if other == rank else CommAborted)
        assert other == rank or (error.culprit == rank and error.reason == "KeyError: 'mine'")
    with pytest.raises(KeyError, match="mine"):
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


@law(world=st.integers(2, 4), order=st.permutations(range(4)))
def test_f4_an_abort_is_final_and_may_be_repeated(run, world, order):
    def program(communicator):
        communicator.barrier()
        for rank in order:
            if rank == communicator.rank:
                communicator.abort(f"first of {rank}")
                communicator.abort(f"second of {rank}")
        for call in (communicator.check, communicator.barrier, lambda: communicator.split("x")):
            with pytest.raises(CommAborted) as raised:
                call()
        raise raised.value

    outcome = run(world, program)
    told = {(error.culprit, error.reason) for error in outcome.errors.values()}
    assert told == {(outcome.abort.culprit, f"first of {outcome.abort.culprit}")}


CALLS = {
    "barrier": lambda c, _: c.barrier(),
    "broadcast": lambda c, _: c.broadcast(torch.zeros(2), 0),
    "async": lambda c, _: c.broadcast(torch.zeros(2), 0, async_op=True),
    "gather": lambda c, _: c.all_gather_into({}, {}, {}),
    "bad gather": lambda c, _: c.all_gather_into({}, {5: torch.zeros(1)}, {}),
    "bad rank": lambda c, _: c.broadcast(torch.zeros(2), 17),
    "object": lambda c, _: c.broadcast_object(1, 0),
    "channel": lambda c, _: c.channel("b", src=0, shape=(), dtype=torch.float32),
    "taken": lambda c, _: c.channel("a", src=0, shape=(), dtype=torch.float32),
    "split": lambda c, _: c.split("b"),
    "check": lambda c, _: c.check(),
    "publish": lambda _, ch: ch.publish(1, None),
    "publish out of turn": lambda _, ch: ch.publish(7, None),
    "fetch": lambda _, ch: ch.fetch(0),
    "fetch too new": lambda _, ch: ch.fetch(9),
    "latest": lambda _, ch: ch.latest(),
    "within": lambda _, ch: ch.fetch_within(0),
    "within too new": lambda _, ch: ch.fetch_within(9),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("run", [simulate, threads], ids=lambda run: run.name)
def test_f4_after_an_abort_every_call_raises_it(call, run):
    """Rule 9: whatever is called, right or wrong, on any rank."""

    def program(communicator):
        channel = communicator.channel("a", src=0, shape=(2,), dtype=torch.int32)
        channel.publish(0, SMALL.make(0) if communicator.rank == 0 else None)
        channel.fetch(0)
        communicator.barrier()
        if communicator.rank == 1:
            communicator.abort("enough")
        with pytest.raises(CommAborted):
            communicator.barrier()
        with pytest.raises(CommAborted, match="rank 1 ended the run: enough"):
            CALLS[call](communicator, channel)
        assert communicator.close() == ()
        return True

    outcome = run(2, program)
    assert {type(error) for error in outcome.errors.values()} <= {CommAborted}
    assert outcome.abort.reason == "enough"


@pytest.mark.parametrize("place", ["barrier", "fetch", "wait", "close", "publish"])
@pytest.mark.parametrize("rank", [0, 1])
def test_f5_an_abort_from_another_thread_wakes_every_rank(place, rank):
    """The ranks wait for one another for ever; a thread that is no rank revokes the run."""
    asleep = threading.Semaphore(0)

    def program(communicator):
        channel = communicator.channel("a", src=0, shape=(2,), dtype=torch.int32, max_staleness=0)
        if communicator.rank == 2:
            for _ in range(2):
                asleep.acquire()
            time.sleep(0.02)  # the two are in their waits by now, or will find the abort
            helper = threading.Thread(target=made[rank].abort, args=("from outside",))
            helper.start()
            helper.join()
            with pytest.raises(CommAborted):
                communicator.barrier()
            communicator.check()
        made[communicator.rank] = communicator
        work = communicator.broadcast(torch.zeros(2), 2, async_op=True)
        asleep.release()
        if place == "barrier":
            communicator.barrier()
        elif place == "wait":
            work.wait()
        elif place == "close":
            communicator.close()
        else:
            source = communicator.rank == 0
            for version in range(5):
                channel.publish(version, SMALL.make(version) if source else None)
            communicator.barrier()

    made = {}
    outcome = threads(3, program)
    assert {type(error) for error in outcome.errors.values()} == {CommAborted}
    assert {(e.culprit, e.reason) for e in outcome.errors.values()} == {(rank, "from outside")}
    assert set(outcome.errors) == {0, 1, 2}


def test_a_rank_that_ends_early_ends_the_others_at_once():
    """At its next operation, in whatever domain, both are named; nobody runs into the timeout."""
    waits = {
        "barrier": lambda c, s, ch: c.barrier(),
        "split": lambda c, s, ch: s.broadcast(torch.zeros(1), 1),
        "fetch": lambda c, s, ch: (ch.publish(0, None), ch.fetch(0)),
        "publish": lambda c, s, ch: [ch.publish(v, None) for v in range(9)],
        "open": lambda c, s, ch: c.split("another"),
    }
    for run in (simulate, threads):
        for name, call in waits.items():

            def program(communicator, call=call):
                split = communicator.split("s")
                channel = split.channel("c", src=0, shape=(1,), dtype=torch.float32)
                if communicator.rank != 0:
                    call(communicator, split, channel)

            outcome = run(2, program)
            assert outcome.abort is not None, name
            assert "timeout" not in outcome.abort.reason and "waited" not in outcome.abort.reason, name
            with pytest.raises(ProtocolError, match=r"ranks disagree: .*rank 0 calls close\(\)"):
                outcome.values()
            assert set(outcome.errors) == {0, 1}, name
