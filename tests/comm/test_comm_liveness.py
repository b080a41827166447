"""Liveness and staleness: calls return, in time, with a version that the bound allows (L1 to L5, B1 to B5)."""

import math

import pytest
import torch
from hypothesis import strategies as st
from runners import clean, law, simulate

from vitrail.comm import solo
from vitrail.comm.backends.virtual_schedule import Fault
from vitrail.errors import CommAborted
from vitrail.testing.comm.judging import opened
from vitrail.testing.comm.payloads import Payload, bits
from vitrail.testing.comm.programs import Player, programs, resolve
from vitrail.testing.comm.schedules import DrawnSchedule, schedules

SMALL = Payload(torch.int32, (2,))
BOUNDS = st.integers(0, 3)


def relay(length, bound):
    """Every rank publishes when it is its turn and reads the version due, exactly ``bound`` steps old."""

    def program(communicator):
        channel, used = opened(communicator, SMALL, bound=bound), []
        for step in range(length):
            channel.publish(step, SMALL.make(step) if communicator.rank == 0 else None)
            due = max(0, step - bound)
            used.append((due, bits(channel.fetch(due))))
        return used

    return program


@law(simulate, world=st.integers(1, 6), rounds=st.integers(0, 6), schedule=schedules())
def test_l1_every_call_returns_within_the_delays(run, world, rounds, schedule):
    """A rank that waits does so for messages that are under way: at most one delay after another."""

    def program(communicator):
        for turn in range(rounds):
            begin = communicator._transport.clock()
            communicator.barrier()
            communicator.broadcast(torch.zeros(1), turn % world)
            assert communicator._transport.clock() - begin <= 2 * (turn + 1) * schedule.longest
        return True

    outcome = run(world, program, schedule)
    clean(outcome)
    assert outcome.makespan <= (2 * rounds + 1) * schedule.longest  # and one for the end


@pytest.mark.parametrize("world", [2, 3])
def test_l2_a_deadlock_is_told_with_who_waits_for_whom(world):
    def program(communicator):
        splits = [communicator.split(f"s{rank}") for rank in range(world)]
        splits[communicator.rank].barrier()  # each in its own

    outcome = simulate(world, program, timeout=math.inf)
    assert {type(error) for error in outcome.errors.values()} == {CommAborted}
    for rank in range(world):
        others = ", ".join(str(other) for other in range(world) if other != rank)
        assert f"rank {rank} waits for barrier() of rank(s) {others}" in outcome.abort.reason


@law(simulate, world=st.integers(2, 4), bound=BOUNDS, late=st.integers(1, 50), extra=st.integers(1, 4))
def test_l3_publish_blocks_only_when_the_slots_are_full_and_then_goes_on(run, world, bound, late, extra):
    """The last rank comes ``late``; until then the source gets rid of exactly ``bound + 2`` versions."""
    slots, times = bound + 2, []

    def program(communicator):
        channel = opened(communicator, SMALL, bound=bound)
        communicator.barrier()
        if communicator.rank == world - 1:
            communicator._transport.spend(float(late))
        for version in range(slots + extra):
            channel.publish(version, SMALL.make(version) if communicator.rank == 0 else None)
            if communicator.rank == 0:
                times.append(communicator._transport.clock())
        return bits(channel.fetch(slots + extra - 1))

    got = clean(run(world, program, DrawnSchedule()))
    assert times[:slots] == [0.0] * slots
    assert times[slots:] == [float(late)] * extra
    assert got == [bits(SMALL.make(slots + extra - 1))] * world


def test_l5_one_rank_alone_never_waits():
    alone = solo()
    seen, leaked = Player(alone).play(resolve(1, [(k, k, 2 * k) for k in range(13)] * 2, [SMALL]))
    assert len(seen) > 4
    assert leaked == ()
    assert [span for span in alone.trace.spans if span.lane == "wait"] == []


@law(simulate, ops=programs(1))
def test_l5_nor_does_it_in_any_program(run, ops):
    def program(communicator):
        Player(communicator).play(ops)
        return [span.name for span in communicator.trace.spans if span.lane == "wait"]

    outcome = run(1, program, DrawnSchedule(delays=b"\xff" * 32))
    assert clean(outcome) == [[]]
    rests = sum(op.number for op in ops if op.kind == "rest")
    assert outcome.makespan == pytest.approx(1e-3 * rests)


@law(simulate, stalls=st.dictionaries(st.tuples(st.integers(0, 2), st.integers(1, 20)), st.integers(1, 99), max_size=3))
def test_l4_once_every_stall_is_over_the_same_run_finishes(run, stalls):
    """No stall reaches the timeout, so healing is a matter of time."""
    per_rank = [sum(seconds for (rank, _), seconds in stalls.items() if rank == r) for r in range(3)]
    schedule = DrawnSchedule(faults={at: Fault("stall", float(seconds)) for at, seconds in stalls.items()})
    outcome = run(3, relay(5, 1), schedule, timeout=sum(per_rank) + 1)
    clean(outcome)
    assert outcome.makespan <= sum(per_rank)
