"""Order: what matches what, and what is there before what (O1 to O5)."""

import torch
from hypothesis import strategies as st
from runners import clean, law, simulate
from test_comm_safety import opened

from vitrail.testing.comm.payloads import Payload, bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules

SMALL = Payload(torch.int32, (2,))
BOUNDS = st.integers(0, 3)


def rest(communicator, seconds):
    """Let time pass, where it is virtual."""
    spend = getattr(communicator._transport, "spend", None)
    if spend is not None:
        spend(seconds)


@law(world=st.integers(1, 4), bound=BOUNDS, pauses=st.lists(st.integers(0, 300), max_size=12), schedule=schedules())
def test_o1_o2_latest_never_goes_back_and_has_no_gaps(run, world, bound, pauses, schedule):
    """And every version up to it that is kept can be read without waiting; in the end it is the last one."""

    def program(communicator):
        channel, last = opened(communicator, SMALL, bound=bound), -1
        for version, pause in enumerate(pauses):
            channel.publish(version, SMALL.make(version) if communicator.rank == 0 else None)
            rest(communicator, pause * 1e-3)
            now = channel.latest()
            assert last <= now <= version
            last = now
            waits = len(communicator.trace.spans)
            for at in range(max(0, version - bound), now + 1):
                assert bits(channel.fetch(at)) == bits(SMALL.make(at))
            assert len(communicator.trace.spans) == waits
        if pauses:
            channel.fetch(len(pauses) - 1)
        communicator.barrier()
        rest(communicator, 1.0)
        for at in range(max(0, len(pauses) - 1 - bound), len(pauses)):
            channel.fetch(at)
        return channel.latest()

    assert set(clean(run(world, program, schedule))) == {len(pauses) - 1}


class Overtaking(DrawnSchedule):
    """The first version travels long."""

    def delay(self, source, destination, nbytes):
        self.messages += nbytes > 0
        return {0: 0.0, 1: 0.2}.get(self.messages, 0.01) if nbytes else 0.0


def test_o1_versions_that_overtake_each_other_become_visible_in_order():
    """Version 1 is here before version 0: ``latest`` waits for both, ``fetch`` for neither."""

    def program(communicator):
        channel = opened(communicator, SMALL, bound=2)
        for version in range(2):
            channel.publish(version, SMALL.make(version) if communicator.rank == 0 else None)
        if communicator.rank == 0:
            return None
        seen = []
        for pause in (0.05, 0.3):
            rest(communicator, pause)
            seen.append((channel.latest(), bits(channel.fetch(1)), communicator._transport.clock()))
        return seen

    (first, got, when), (second, _, _) = clean(simulate(2, program, Overtaking()))[1]
    assert (first, second, got) == (-1, 1, bits(SMALL.make(1)))
    assert when < 0.2


@law(world=st.integers(2, 4), length=st.integers(1, 5), schedule=schedules())
def test_o3_what_was_published_before_is_there_without_a_later_post(run, world, length, schedule):
    """Whoever has read version v of the second channel can read version v of the first."""

    def program(communicator):
        first, second = (opened(communicator, SMALL, name, bound=1) for name in "ab")
        read = []
        for version in range(length):
            for channel in (first, second):
                value = SMALL.make(channel.name, version) if communicator.rank == 0 else None
                channel.publish(version, value)
            read += [bits(second.fetch(version)), bits(first.fetch(version))]
        return read

    wanted = [bits(SMALL.make(name, version)) for version in range(length) for name in "ba"]
    assert clean(run(world, program, schedule)) == [wanted] * world


@law(world=st.integers(1, 4), orders=st.lists(st.permutations([0, 0, 1, 1, 2, 2]), min_size=4), schedule=schedules())
def test_o4_splits_are_matched_each_by_its_own_count(run, world, orders, schedule):
    """Every rank begins the same operations of three communicators, the communicators in an order of its own."""

    def program(communicator):
        rank = communicator.rank
        parts = [communicator, communicator.split("b"), communicator.split("c")]
        counts, begun = [0, 0, 0], []
        for at in orders[rank]:
            src = counts[at] % world
            tensor = SMALL.make(at, counts[at]) if rank == src else SMALL.blank()
            begun.append((at, counts[at], tensor, parts[at].broadcast(tensor, src, async_op=True)))
            counts[at] += 1
        for *_, work in begun:
            work.wait()
        return {(at, count): bits(tensor) for at, count, tensor, _ in begun}

    wanted = {(at, count): bits(SMALL.make(at, count)) for at in range(3) for count in range(2)}
    assert clean(run(world, program, schedule)) == [wanted] * world


@law(world=st.integers(1, 5), rounds=st.integers(1, 4), late=st.integers(0, 4), schedule=schedules())
def test_o4_nobody_leaves_a_barrier_before_all_have_come(run, world, rounds, late, schedule):
    entered = [0] * world

    def program(communicator):
        for turn in range(rounds):
            if communicator.rank == late % world:
                rest(communicator, 1.0)
            entered[communicator.rank] = turn + 1
            communicator.barrier()
            assert min(entered) >= turn + 1
        return True

    assert all(clean(run(world, program, schedule)))


@law(
    nodes=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=8),
    schedule=schedules(),
)
def test_o5_what_is_published_in_an_order_that_the_needs_allow_always_comes_to_an_end(run, nodes, schedule):
    """A graph of needs: each node's rank reads what it needs, computes and publishes; the others only read."""

    def needs(index):
        return sorted({need % index for need in nodes[index][1]}) if index else []

    def value(index, read):
        return torch.tensor([index + 1 + 3 * sum(read(need) for need in needs(index))])

    def program(communicator):
        like = Payload(torch.int64, (1,))
        channels = [opened(communicator, like, str(i), owner) for i, (owner, _) in enumerate(nodes)]
        for index, (owner, _) in enumerate(nodes):
            made = None
            if owner == communicator.rank:
                made = value(index, lambda need: int(channels[need].fetch(0)))
            channels[index].publish(0, made)
        return [int(channel.fetch(0)) for channel in channels]

    wanted = []
    for index in range(len(nodes)):
        wanted.append(int(value(index, wanted.__getitem__)))
    assert clean(run(4, program, schedule)) == [wanted] * 4
