"""Laws of liveness and staleness: calls return, with a version within the bound (L1 to L5, B1 to B5)."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import strategies as st

from vitrail.errors import CommAborted, ProtocolError, StaleVersion
from vitrail.testing.comm.bench import LawBroken, expect
from vitrail.testing.comm.judging import Watched, law, opened, same
from vitrail.testing.comm.laws.safety import BOUNDS, SMALL
from vitrail.testing.comm.payloads import bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedCommunicator


def lagging_reads(c: RecordedCommunicator, length: int, bound: int) -> Any:
    """Publish one version per step and read the version that is exactly ``bound`` steps old."""
    channel, used = opened(c, SMALL, bound=bound), []
    for step in range(length):
        channel.publish(step, SMALL.make(step) if c.rank == 0 else None)
        due = max(0, step - bound)
        used.append((due, bits(channel.fetch(due))))
    return used


@law("l2-no-deadlock", world=st.integers(1, 5), length=st.integers(1, 6), bound=BOUNDS, schedule=schedules())
def no_deadlock(run: Watched, world: int, length: int, bound: int, schedule: DrawnSchedule) -> None:
    """A relay with any lag, on any number of ranks, terminates."""
    wanted = [(v, bits(SMALL.make(v))) for v in (max(0, step - bound) for step in range(length))]
    for rank, used in enumerate(run(world, partial(lagging_reads, length=length, bound=bound), schedule).values()):
        same(used, wanted, f"what rank {rank} read")


def ahead(c: RecordedCommunicator, bound: int, extra: int) -> Any:
    """Let the source fill its slots before readers post anything; return begin and end time of each publication."""
    slots, times = bound + 2, []
    channel, full = opened(c, SMALL, bound=bound), opened(c, SMALL, "full")
    if c.rank != 0:
        full.publish(0, None)
        full.fetch(0)
        c.rest(0.5)
    for version in range(slots + extra):
        begin = c.clock()
        channel.publish(version, SMALL.make(version) if c.rank == 0 else None)
        times.append((begin, c.clock()))
        if c.rank == 0 and version == slots - 1:
            full.publish(0, SMALL.make("full"))
    return times, bits(channel.fetch(slots + extra - 1))


@law("l3-slots", world=st.integers(2, 3), bound=BOUNDS, extra=st.integers(1, 4), schedule=schedules())
def slots(run: Watched, world: int, bound: int, extra: int, schedule: DrawnSchedule) -> None:
    """A source publishes as many versions ahead as there are slots; for one more it waits until readers free a slot."""
    reads = run(world, partial(ahead, bound=bound, extra=extra), schedule).values()
    for version in range(bound + 2, bound + 2 + extra):
        freed = version - bound - 2
        for rank in range(1, world):
            came, left = reads[rank][0][freed][0], reads[0][0][version][1]
            text = f"the source published version {version} before rank {rank} came to {freed}, whose slot it takes"
            expect(came <= left, text)
    for rank, (_, got) in enumerate(reads):
        same(got, bits(SMALL.make(bound + 1 + extra)), f"the last version on rank {rank}")


def used(c: RecordedCommunicator, length: int, bound: int) -> Any:
    """Read one channel with an exact lag and another one's newest version; return both and the traced ages."""
    exact = opened(c, SMALL, "exact", 0, bound)
    elastic = opened(c, SMALL, "elastic", c.world_size - 1, bound)
    read = []
    for step in range(length):
        exact.publish(step, SMALL.make(step) if c.rank == 0 else None)
        elastic.publish(step, SMALL.make("e", step) if c.rank == c.world_size - 1 else None)
        due = bits(exact.fetch(step - bound)) if step >= bound else None
        version, got = elastic.fetch_within(step)
        read.append((due, version, bits(got)))
    return read, [count.value for count in c.trace.counts if count.name == "staleness"]


@law("b1-bound", world=st.integers(1, 4), length=st.integers(1, 8), bound=BOUNDS, schedule=schedules())
def staleness(run: Watched, world: int, length: int, bound: int, schedule: DrawnSchedule) -> None:
    """A version that is read is never older than the bound, and has the exact lag where one is requested."""
    for rank, (read, ages) in enumerate(run(world, partial(used, length=length, bound=bound), schedule).values()):
        for step, (due, version, got) in enumerate(read):
            wanted = bits(SMALL.make(step - bound)) if step >= bound else None
            same(due, wanted, f"what rank {rank} fetched at step {step} as version {step - bound}")
            expect(max(0, step - bound) <= version <= step, f"rank {rank} was given version {version} at step {step}")
            same(got, bits(SMALL.make("e", version)), f"what rank {rank} was given at step {step} as version {version}")
        expect(ages.count(bound) >= max(0, length - bound), f"the trace of rank {rank} tells the ages {ages}")
        expect(set(ages) <= set(range(bound + 1)), f"the trace of rank {rank} tells the ages {ages}")


def both(c: RecordedCommunicator, length: int) -> Any:
    """Send the same values by a channel with bound 0 and by a broadcast."""
    channel, equal = opened(c, SMALL, bound=0), []
    for step in range(length):
        value = SMALL.make(step) if c.rank == 0 else None
        channel.publish(step, value)
        sent = SMALL.blank() if value is None else value
        c.broadcast(sent, 0)
        equal.append((bits(channel.fetch(step)), bits(sent), channel.fetch_within(step)[0]))
    return equal


@law("b2-synchronous", world=st.integers(1, 4), length=st.integers(1, 6), schedule=schedules())
def synchronous(run: Watched, world: int, length: int, schedule: DrawnSchedule) -> None:
    """A channel with a staleness bound of 0 is a broadcast."""
    wanted = [(bits(SMALL.make(step)), bits(SMALL.make(step)), step) for step in range(length)]
    for rank, equal in enumerate(run(world, partial(both, length=length), schedule).values()):
        same(equal, wanted, f"(fetched, broadcast, newest) on rank {rank}")


OUTSIDE: dict[str, tuple[type[Exception], str, int]] = {  # error, call, end of the window: 0 old, 1 new, 2 negative
    "negative": (ValueError, "fetch", 2),
    "old": (StaleVersion, "fetch", 0),
    "new": (ProtocolError, "fetch", 1),
    "within": (ProtocolError, "fetch_within", 1),
    "within old": (StaleVersion, "fetch_within", 0),
    "within negative": (ValueError, "fetch_within", 2),
}


def window(c: RecordedCommunicator, case: str, bound: int, by: int, rank: int) -> Any:
    """Read all versions in the window; then rank ``rank`` reads one that is ``by`` versions outside of it.

    Raises:
        LawBroken: If that call succeeds or raises another error than ``OUTSIDE[case]`` names.
    """
    last, (error, call, end) = bound + 3, OUTSIDE[case]
    channel = opened(c, SMALL, bound=bound)
    for version in range(last + 1):
        channel.publish(version, SMALL.make(version) if c.rank == 0 else None)
    read = [bits(channel.fetch(version)) for version in range(last - bound, last + 1)]
    if c.rank == rank:
        newest = last + bound if call == "fetch_within" else last
        version = (last - bound - by, newest + by, -by)[end]
        try:
            getattr(channel, call)(version)
        except Exception as raised:
            if type(raised) is not error:
                raise LawBroken(f"{call}({version}) raised {raised!r}, where a {error.__name__} is due") from None
        else:
            raise LawBroken(f"{call}({version}) gave a value")
    c.barrier()
    return read, bits(channel.fetch(last))


@law(
    "b4-window",
    case=st.sampled_from(sorted(OUTSIDE)),
    bound=BOUNDS,
    by=st.integers(1, 3),
    rank=st.integers(0, 1),
    schedule=schedules(),
)
def outside(run: Watched, case: str, bound: int, by: int, rank: int, schedule: DrawnSchedule) -> None:
    """A version outside of the window is refused, and no neighbouring version is returned."""
    last = bound + 3
    ended = run(2, partial(window, case=case, bound=bound, by=by, rank=rank), schedule)
    if OUTSIDE[case][0] is ProtocolError:  # it would never complete: the run is over
        for other, error in ended.errors.items():
            message = f"rank {other} raised {error!r}, where the run was ended by rank {rank}"
            expect(isinstance(error, CommAborted) and error.culprit == rank, message)
        expect(set(ended.errors) == {0, 1}, f"rank(s) {sorted(ended.results)} went on")
        return
    wanted = [bits(SMALL.make(version)) for version in range(last - bound, last + 1)], bits(SMALL.make(last))
    for other, got in enumerate(ended.values()):
        same(got, wanted, f"what rank {other} read")


@law(
    "b5-first-steps",
    length=st.integers(1, 6),
    bound=BOUNDS,
    schedule=schedules(),
    worlds=st.permutations([1, 2, 3, 5]),
)
def first_steps(run: Watched, length: int, bound: int, schedule: DrawnSchedule, worlds: list[int]) -> None:
    """The versions read at the first steps are equal on any number of ranks."""
    reads = [run(world, partial(lagging_reads, length=length, bound=bound), schedule).values() for world in worlds[:2]]
    for values in reads:
        for rank, got in enumerate(values):
            same(got, reads[0][0], f"what rank {rank} of {len(values)} read")
    same([version for version, _ in reads[0][0]][: bound + 1], [0] * min(length, bound + 1), "the first versions")
