"""Laws of order: which operations match, and which values are visible before others (O1 to O5)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from vitrail.testing.comm.bench import expect
from vitrail.testing.comm.judging import Watched, law, opened, same
from vitrail.testing.comm.laws.safety import BOUNDS, SMALL
from vitrail.testing.comm.payloads import Payload, bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedCommunicator

Nodes = list[tuple[int, list[int]]]  # rank of each node, and nodes that it depends on


def polls(c: RecordedCommunicator, bound: int, pauses: list[int]) -> Any:
    """Publish, rest, ask for the latest version and read all versions up to it; then read the remaining ones."""
    channel, polled = opened(c, SMALL, bound=bound), []
    for version, pause in enumerate(pauses):
        channel.publish(version, SMALL.make(version) if c.rank == 0 else None)
        c.rest(pause * 1e-3)
        now, waits = channel.latest(), len(c.trace.spans)
        read = {at: bits(channel.fetch(at)) for at in range(max(0, version - bound), now + 1)}
        polled.append((now, read, len(c.trace.spans) - waits))
    if pauses:
        channel.fetch(len(pauses) - 1)
    c.barrier()
    for at in range(max(0, len(pauses) - 1 - bound), len(pauses)):
        channel.fetch(at)
    return polled, channel.latest()


@law(
    "o1-latest",
    world=st.integers(1, 4),
    bound=BOUNDS,
    pauses=st.lists(st.integers(0, 300), max_size=12),
    schedule=schedules(),
)
def latest(run: Watched, world: int, bound: int, pauses: list[int], schedule: DrawnSchedule) -> None:
    """The latest version never decreases and has no gaps, and all versions up to it can be read without waiting."""
    for rank, (polled, end) in enumerate(run(world, partial(polls, bound=bound, pauses=pauses), schedule).values()):
        last = -1
        for version, (now, read, waits) in enumerate(polled):
            expect(last <= now <= version, f"on rank {rank} the latest version was {last}, then {now} of {version}")
            expect(waits == 0, f"rank {rank} had to wait for a version up to {now}, which it was told is the latest")
            for at, got in read.items():
                same(got, bits(SMALL.make(at)), f"version {at} on rank {rank}")
            last = now
        newest = len(pauses) - 1
        late = newest - bound - 2  # the one out of reach that may still be on its way is the next
        text = f"on rank {rank} the latest version was {end}, when those in reach of {newest} were read"
        expect(end in (newest, late), text)


def pairs(c: RecordedCommunicator, length: int) -> Any:
    """Publish on two channels in one order and read them in the other."""
    first, second = (opened(c, SMALL, name, bound=1) for name in "ab")
    read = []
    for version in range(length):
        for channel in (first, second):
            channel.publish(version, SMALL.make(channel.name, version) if c.rank == 0 else None)
        read += [bits(second.fetch(version)), bits(first.fetch(version))]
    return read


@law("o3-happens-before", world=st.integers(2, 4), length=st.integers(1, 5), schedule=schedules())
def happens_before(run: Watched, world: int, length: int, schedule: DrawnSchedule) -> None:
    """A rank that has read version v of the second channel can read version v of the first, without a later post."""
    wanted = [bits(SMALL.make(name, version)) for version in range(length) for name in "ba"]
    for rank, read in enumerate(run(world, partial(pairs, length=length), schedule).values()):
        same(read, wanted, f"what rank {rank} read")


def parts(c: RecordedCommunicator, orders: list[list[int]]) -> Any:
    """Make the same operations on three communicators, interleaved in the rank's own order ``orders[rank]``."""
    owners = [c, c.split("b"), c.split("c")]
    counts, begun = [0, 0, 0], []
    for at in orders[c.rank]:
        src = counts[at] % c.world_size
        tensor = SMALL.make(at, counts[at]) if c.rank == src else SMALL.blank()
        begun.append((at, counts[at], tensor, owners[at].broadcast(tensor, src, async_op=True)))
        counts[at] += 1
    for *_, work in begun:
        assert work is not None
        work.wait()
    return {(at, count): bits(tensor) for at, count, tensor, _ in begun}


@law(
    "o4-splits",
    world=st.integers(1, 4),
    orders=st.lists(st.permutations([0, 0, 1, 1, 2, 2]), min_size=4, max_size=4),
    schedule=schedules(),
)
def splits(run: Watched, world: int, orders: list[list[int]], schedule: DrawnSchedule) -> None:
    """Operations of a split are matched by its own count, in any order relative to other splits on a rank."""
    wanted = {(at, count): bits(SMALL.make(at, count)) for at in range(3) for count in range(2)}
    for rank, got in enumerate(run(world, partial(parts, orders=orders), schedule).values()):
        for (at, count), value in wanted.items():
            same(got[at, count], value, f"operation {count} of communicator {at} on rank {rank}")


def turnstile(c: RecordedCommunicator, rounds: int, late: int) -> Any:
    """Return arrival and departure time of ``rounds`` barriers; rank ``late`` arrives late."""
    moments = []
    for _ in range(rounds):
        if c.rank == late % c.world_size:
            c.rest(1.0)
        came = c.clock()
        c.barrier()
        moments.append((came, c.clock()))
    return moments


@law("o4-barrier", world=st.integers(1, 5), rounds=st.integers(1, 4), late=st.integers(0, 4), schedule=schedules())
def barrier(run: Watched, world: int, rounds: int, late: int, schedule: DrawnSchedule) -> None:
    """No rank leaves a barrier before all have arrived, by the clock that the ranks share."""
    moments = run(world, partial(turnstile, rounds=rounds, late=late), schedule).values()
    for turn in range(rounds):
        last, who = max((moments[rank][turn][0], rank) for rank in range(world))
        for rank in range(world):
            text = (
                f"rank {rank} left barrier {turn + 1} before rank {who} had come, {last - moments[rank][turn][1]:g} s"
            )
            expect(last <= moments[rank][turn][1], text)


def _needs(nodes: Nodes, index: int) -> list[int]:
    return sorted({need % index for need in nodes[index][1]}) if index else []


def graph(c: RecordedCommunicator, nodes: Nodes) -> Any:
    """Evaluate a dependency graph: each node's rank reads its inputs and publishes a value that all ranks read."""
    like = Payload(torch.int64, (1,))
    channels = [opened(c, like, str(index), owner) for index, (owner, _) in enumerate(nodes)]
    for index, (owner, _) in enumerate(nodes):
        made = None
        if owner == c.rank:
            total = sum(int(channels[need].fetch(0)) for need in _needs(nodes, index))
            made = torch.tensor([index + 1 + 3 * total], dtype=torch.int64, device="cpu")
        channels[index].publish(0, made)
    return [int(channel.fetch(0)) for channel in channels]


@law(
    "o5-linear-extension",
    nodes=st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=8),
    schedule=schedules(),
)
def linear_extension(run: Watched, nodes: Nodes, schedule: DrawnSchedule) -> None:
    """Publishing in any order that respects dependencies terminates, with equal results on all ranks."""
    wanted: list[int] = []
    for index in range(len(nodes)):
        wanted.append(index + 1 + 3 * sum(wanted[need] for need in _needs(nodes, index)))
    for rank, got in enumerate(run(4, partial(graph, nodes=nodes), schedule).values()):
        same(got, wanted, f"what rank {rank} read")
