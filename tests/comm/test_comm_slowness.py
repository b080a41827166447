"""Slowness: it costs time and nothing else, up to the timeout, which names who is slow (W1 to W4)."""

import math

import pytest
import torch
from hypothesis import strategies as st
from runners import TIMEOUT_S, clean, law, simulate

from vitrail.comm.backends.virtual_schedule import Fault
from vitrail.errors import CommAborted, CommTimeout
from vitrail.testing.comm.payloads import Payload, bits
from vitrail.testing.comm.programs import Player, programs
from vitrail.testing.comm.schedules import DrawnSchedule, schedules

SMALL = Payload(torch.int32, (2,))


def play(ops):
    return lambda communicator: Player(communicator).play(ops)


@law(
    simulate,
    ops=programs(3),
    stalls=st.dictionaries(st.tuples(st.integers(0, 2), st.integers(1, 24)), st.integers(1, 30), max_size=3),
    schedule=schedules(),
)
def test_w1_a_delay_below_the_timeout_changes_nothing_but_the_time(run, ops, stalls, schedule):
    """At most three stalls, together below the timeout."""
    quick = clean(run(3, play([op for op in ops if op.kind != "wait" or op.number]), schedule.again()))
    schedule.faults = {at: Fault("stall", float(seconds)) for at, seconds in stalls.items()}
    slow = clean(run(3, play([op for op in ops if op.kind != "wait" or op.number]), schedule))
    assert [seen for seen, _ in slow] == [seen for seen, _ in quick]
    assert [leaked for _, leaked in slow] == [leaked for _, leaked in quick]


@law(
    simulate,
    world=st.integers(2, 5),
    slow=st.integers(0, 4),
    point=st.integers(1, 12),
    seconds=st.sampled_from([TIMEOUT_S * 1.5, TIMEOUT_S * 10, math.inf]),
    schedule=schedules(),
)
def test_w2_a_timeout_names_the_rank_that_is_slow(run, world, slow, point, seconds, schedule):
    slow %= world
    schedule.faults = {(slow, point): Fault("stall", seconds)}

    def program(communicator):
        part = communicator.split("part")
        for step in range(4):
            communicator.note(f"step {step}")
            communicator.barrier()
            part.broadcast(torch.zeros(1), step % world)

    outcome = run(world, program, schedule)
    if not schedule.struck:
        clean(outcome)
        return
    if not outcome.errors:  # it slept at its very end, when nobody needed it
        return
    assert outcome.abort.culprit == slow
    kinds = {rank: type(error) for rank, error in outcome.errors.items()}
    assert CommTimeout in kinds.values()
    assert set(kinds.values()) <= {CommTimeout, CommAborted}
    assert kinds[slow] is CommAborted
    assert all(e.culprit == slow for e in outcome.errors.values() if isinstance(e, CommAborted))
    assert f"waited {TIMEOUT_S:g} s on rank" in outcome.abort.reason
    assert f"rank {slow} is behind, last seen " in outcome.abort.reason
    assert set(outcome.errors) == set(range(world))


def test_w2_a_message_that_is_lost_is_its_senders_fault():
    """Nobody is behind: both have posted, one message does not arrive."""
    for lost in (0, 1):

        class Losing(DrawnSchedule):
            def delay(self, source, destination, nbytes, lost=lost):
                return math.inf if source == lost else 0.0

        def program(communicator):
            communicator.barrier()
            communicator._transport.spend(1.0)

        outcome = simulate(2, program, Losing())
        assert outcome.abort.culprit == lost
        assert f"rank {lost} has posted it, but its message did not arrive" in outcome.abort.reason


@law(simulate, world=st.integers(1, 4), steps=st.integers(5, 30), seconds=st.integers(20, 99), schedule=schedules())
def test_w3_many_short_waits_are_no_timeout(run, world, steps, seconds, schedule):
    """Each wait is below the timeout, their sum far above it."""

    def program(communicator):
        for step in range(steps):
            if communicator.rank == step % world:
                communicator._transport.spend(float(seconds))
            communicator.barrier()

    outcome = run(world, program, schedule)
    clean(outcome)
    assert outcome.makespan >= steps * seconds


def longest_path(length, bound, costs, stalls):
    """Ends of each rank's steps without any network: a step begins when the one before has ended and its version is
    out; the source gives version v away when every rank has posted version v - slots."""
    slots, world = bound + 2, len(costs)
    post = [[0.0] * length for _ in range(world)]
    end = [[0.0] * length for _ in range(world)]
    for step in range(length):
        for rank in range(world):
            now = (end[rank][step - 1] if step else 0.0) + costs[rank] + stalls.get((rank, step), 0.0)
            if step >= slots:
                now = max(now, *(post[other][step - slots] for other in range(world)))
            post[rank][step] = now
        for rank in range(world):
            end[rank][step] = max(post[rank][step], post[0][max(0, step - bound)])
    return max(each[-1] for each in end)


@law(
    simulate,
    length=st.integers(1, 8),
    bound=st.integers(0, 3),
    costs=st.lists(st.integers(0, 9), min_size=2, max_size=4),
    stalled=st.tuples(st.integers(0, 3), st.integers(0, 7)),
    seconds=st.integers(0, 40),
)
def test_w4_lag_absorbs_a_stall_up_to_the_slack(run, length, bound, costs, stalled, seconds):
    """The simulated time is that of the longest path, and a stall costs what is left of it beyond the slack."""
    rank, at = stalled[0] % len(costs), stalled[1] % length
    stalls = {(rank, at): float(seconds)}

    def program(communicator):
        channel = communicator.channel("a", src=0, shape=(2,), dtype=torch.int32, max_staleness=bound)
        for step in range(length):
            communicator._transport.spend(costs[communicator.rank] + stalls.get((communicator.rank, step), 0.0))
            channel.publish(step, SMALL.make(step) if communicator.rank == 0 else None)
            due = max(0, step - bound)
            assert bits(channel.fetch(due)) == bits(SMALL.make(due))

    outcome = run(len(costs), program, DrawnSchedule(), timeout=1e9)
    clean(outcome)
    without = longest_path(length, bound, costs, {})
    assert outcome.makespan == longest_path(length, bound, costs, stalls)
    far = longest_path(length, bound, costs, {(rank, at): 1e6})
    slack = 1e6 - (far - without)
    assert outcome.makespan == without + max(0.0, seconds - slack)


@pytest.mark.parametrize(("bound", "slack"), [(0, 9.0), (1, 19.0), (2, 27.0)])
def test_w4_a_reader_that_is_faster_catches_up(bound, slack):
    """By hand: the source takes 10 s a step, the reader 1 s; a stall of the reader is absorbed by what it waits."""
    assert longest_path(4, bound, [10, 1], {}) == 40
    assert longest_path(4, bound, [10, 1], {(1, 0): 9.0}) == 40
    assert longest_path(4, bound, [10, 1], {(1, 3): slack}) == 40
    assert longest_path(4, bound, [10, 1], {(1, 3): slack + 1}) == 41
