"""Liveness and staleness: calls return, in time, with a version that the bound allows (L1 to L5, B1 to B5)."""

import math

import pytest
import torch
from hypothesis import strategies as st
from runners import clean, law, simulate
from test_comm_safety import opened

from vitrail.comm import solo
from vitrail.comm.schedule import Fault
from vitrail.errors import CommAborted, ProtocolError, StaleVersion
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


@law(simulate, world=st.integers(1, 8), length=st.integers(1, 6), bound=BOUNDS, schedule=schedules())
def test_l2_a_relay_with_any_lag_never_deadlocks(run, world, length, bound, schedule):
    for used in clean(run(world, relay(length, bound), schedule, timeout=math.inf)):
        assert used == [(v, bits(SMALL.make(v))) for v in (max(0, step - bound) for step in range(length))]


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


@law(world=st.integers(2, 4), bound=BOUNDS, length=st.integers(1, 12), schedule=schedules())
def test_b3_the_source_is_never_further_ahead_than_there_are_slots(run, world, bound, length, schedule):
    posted = [-1] * world

    def program(communicator):
        channel, rank = opened(communicator, SMALL, bound=bound), communicator.rank
        for version in range(length):
            if rank == 0:
                channel.publish(version, SMALL.make(version))
                assert version - min(posted[1:]) <= bound + 2
            else:
                posted[rank] = version  # before the call: a rank may look in between
                channel.publish(version, None)
        return True

    assert all(clean(run(world, program, schedule)))


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


@law(world=st.integers(1, 4), length=st.integers(1, 8), bound=BOUNDS, schedule=schedules())
def test_b1_a_version_that_is_used_is_never_older_than_the_bound(run, world, length, bound, schedule):
    """The exact lag once there are as many versions; whatever is newest within the bound for the elastic call."""

    def program(communicator):
        exact = opened(communicator, SMALL, "exact", 0, bound)
        elastic = opened(communicator, SMALL, "elastic", world - 1, bound)
        for step in range(length):
            exact.publish(step, SMALL.make(step) if communicator.rank == 0 else None)
            elastic.publish(step, SMALL.make("e", step) if communicator.rank == world - 1 else None)
            if step >= bound:
                assert bits(exact.fetch(step - bound)) == bits(SMALL.make(step - bound))
            version, got = elastic.fetch_within(step)
            assert max(0, step - bound) <= version <= step
            assert bits(got) == bits(SMALL.make("e", version))
        return [count.value for count in communicator.trace.counts if count.name == "staleness"]

    for ages in clean(run(world, program, schedule)):
        assert ages.count(bound) >= max(0, length - bound)
        assert set(ages) <= set(range(bound + 1))


@law(world=st.integers(1, 4), length=st.integers(1, 6), schedule=schedules())
def test_b2_without_staleness_a_channel_is_a_broadcast(run, world, length, schedule):
    def program(communicator):
        channel, equal = opened(communicator, SMALL, bound=0), []
        for step in range(length):
            value = SMALL.make(step) if communicator.rank == 0 else None
            channel.publish(step, value)
            sent = SMALL.blank() if value is None else value
            communicator.broadcast(sent, 0)
            equal.append((bits(channel.fetch(step)), bits(sent), channel.fetch_within(step)[0]))
        return equal

    for equal in clean(run(world, program, schedule)):
        assert equal == [(bits(SMALL.make(step)), bits(SMALL.make(step)), step) for step in range(length)]


OUTSIDE = [("negative", ValueError), ("old", StaleVersion), ("new", ProtocolError), ("within", ProtocolError)]


@law(
    outside=st.sampled_from([*OUTSIDE, ("within old", StaleVersion), ("within negative", ValueError)]),
    bound=BOUNDS,
    by=st.integers(1, 3),
    rank=st.integers(0, 1),
    schedule=schedules(),
)
def test_b4_a_version_outside_the_window_is_refused_and_no_neighbour_given(run, outside, bound, by, rank, schedule):
    (case, error), last = outside, bound + 3

    def program(communicator):
        channel = opened(communicator, SMALL, bound=bound)
        for version in range(last + 1):
            channel.publish(version, SMALL.make(version) if communicator.rank == 0 else None)
        for version in range(last - bound, last + 1):
            assert bits(channel.fetch(version)) == bits(SMALL.make(version))
        if communicator.rank == rank:
            calls = {
                "negative": lambda: channel.fetch(-by),
                "old": lambda: channel.fetch(last - bound - by),
                "new": lambda: channel.fetch(last + by),
                "within": lambda: channel.fetch_within(last + bound + by),
                "within old": lambda: channel.fetch_within(last - bound - by),
                "within negative": lambda: channel.fetch_within(-by),
            }
            with pytest.raises(error) as raised:
                calls[case]()
            assert type(raised.value) is error
        communicator.barrier()
        return bits(channel.fetch(last))

    outcome = run(2, program, schedule)
    if error is ProtocolError:  # it would never complete: the run is over
        assert outcome.abort.culprit == rank
        assert {type(each) for each in outcome.errors.values()} == {CommAborted}
    else:
        assert clean(outcome) == [bits(SMALL.make(last))] * 2


@law(length=st.integers(1, 6), bound=BOUNDS, schedule=schedules(), worlds=st.permutations([1, 2, 3, 5]))
def test_b5_what_is_read_at_the_first_steps_is_alike_on_any_number_of_ranks(run, length, bound, schedule, worlds):
    told = [clean(run(world, relay(length, bound), schedule.again())) for world in worlds[:2]]
    assert {tuple(used) for values in told for used in values} == {tuple(told[0][0])}
    assert [version for version, _ in told[0][0]][: bound + 1] == [0] * min(length, bound + 1)


@law(simulate, stalls=st.dictionaries(st.tuples(st.integers(0, 2), st.integers(1, 20)), st.integers(1, 99), max_size=3))
def test_l4_once_every_stall_is_over_the_same_run_finishes(run, stalls):
    """No stall reaches the timeout, so healing is a matter of time."""
    per_rank = [sum(seconds for (rank, _), seconds in stalls.items() if rank == r) for r in range(3)]
    schedule = DrawnSchedule(faults={at: Fault("stall", float(seconds)) for at, seconds in stalls.items()})
    outcome = run(3, relay(5, 1), schedule, timeout=sum(per_rank) + 1)
    clean(outcome)
    assert outcome.makespan <= sum(per_rank)
