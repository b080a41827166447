"""Laws of isolation: channels, splits and runs do not affect each other (I1 to I3)."""

from __future__ import annotations

from functools import partial
from typing import Any

from hypothesis import strategies as st

from vitrail.testing.comm.bench import expect
from vitrail.testing.comm.judging import Watched, law, opened, same
from vitrail.testing.comm.laws.safety import BOUNDS, SMALL
from vitrail.testing.comm.payloads import bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedCommunicator


def alike(c: RecordedCommunicator, bound: int) -> Any:
    """Use five channels of one shape whose names are ambiguous when joined with a split's name."""
    part = c.split("a")
    names = [(c, "a/b"), (part, "b"), (c, "b"), (part, "a"), (part, "%2F")]
    channels = [opened(owner, SMALL, name, c.world_size - 1, bound) for owner, name in names]
    read = []
    for version in range(3):
        for number, channel in enumerate(channels):
            channel.publish(version, SMALL.make(number, version) if c.rank == c.world_size - 1 else None)
        read += [bits(channel.fetch(version)) for channel in reversed(channels)]
    return read


@law("i1-channels", world=st.integers(1, 3), bound=BOUNDS, schedule=schedules())
def channels(run: Watched, world: int, bound: int, schedule: DrawnSchedule) -> None:
    """Channels of one shape never cross, whatever their names and the splits that they belong to."""
    wanted = [bits(SMALL.make(number, version)) for version in range(3) for number in reversed(range(5))]
    for rank, read in enumerate(run(world, partial(alike, bound=bound), schedule).values()):
        same(read, wanted, f"what rank {rank} read")


def unread(c: RecordedCommunicator, tag: str, left: int) -> Any:
    """Publish ``1 + left`` versions tagged by ``tag`` and read only the first."""
    channel = opened(c, SMALL, bound=3)
    for version in range(1 + left):
        channel.publish(version, SMALL.make(tag, version) if c.rank == 0 else None)
    return bits(channel.fetch(0)), channel.latest()


@law("i2-runs", world=st.integers(1, 4), first=st.integers(0, 3), schedule=schedules())
def runs(run: Watched, world: int, first: int, schedule: DrawnSchedule) -> None:
    """A run never reads what the previous run left unread."""
    for tag, left in (("one", first), ("two", 0)):
        for rank, (got, last) in enumerate(run(world, partial(unread, tag=tag, left=left), schedule).values()):
            same(got, bits(SMALL.make(tag, 0)), f"what rank {rank} read in run {tag}")
            expect(last <= left, f"in run {tag} rank {rank} has version {last}, where {left} is the last")


def failing(c: RecordedCommunicator, culprit: int) -> Any:
    """Fail on rank ``culprit`` with a channel and a broadcast pending.

    Raises:
        ValueError: On rank ``culprit``.
    """
    channel = opened(c, SMALL)
    channel.publish(0, SMALL.make("old") if c.rank == 0 else None)
    c.broadcast(SMALL.blank(), culprit, async_op=True)
    if c.rank == culprit:
        raise ValueError("on purpose")
    c.barrier()


def fresh(c: RecordedCommunicator) -> Any:
    """Make the calls of ``failing`` with another value, to their end."""
    c.check()
    channel = opened(c, SMALL)
    channel.publish(0, SMALL.make("new") if c.rank == 0 else None)
    c.barrier()
    return bits(channel.fetch(0))


@law("i3-after-an-abort", world=st.integers(2, 4), culprit=st.integers(0, 3), schedule=schedules())
def after_an_abort(run: Watched, world: int, culprit: int, schedule: DrawnSchedule) -> None:
    """A run after an aborted one starts without any of its state."""
    culprit %= world
    ended = run(world, partial(failing, culprit=culprit), schedule)
    expect(
        isinstance(ended.raised, ValueError), f"`run` raised {ended.raised!r}, where rank {culprit}'s ValueError is due"
    )
    for rank, got in enumerate(run(world, fresh, schedule).values()):
        same(got, bits(SMALL.make("new")), f"what rank {rank} read in the run after")
