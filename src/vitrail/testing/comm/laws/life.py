"""Laws of a communicator's lifetime: `run`, opening, names, threads, closing (R1 to R6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from vitrail.errors import CommAborted, ProtocolError
from vitrail.testing.comm.bench import LawBroken, expect
from vitrail.testing.comm.judging import Watched, law, opened, same
from vitrail.testing.comm.laws.safety import SMALL
from vitrail.testing.comm.payloads import bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedChannel, RecordedCommunicator, RecordedWork


def introduced(c: RecordedCommunicator, value: Any) -> Any:
    """Return the rank's attributes and a broadcast value; the last rank ends first."""
    c.rest((c.world_size - c.rank) * 0.1)
    return c.rank, c.world_size, c.run_id, c.trace.rank, c.broadcast_object(value, c.world_size - 1)


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, -(2**40), "é\n", "", [], {"a": [1, None, {"b": True}], "": "x" * 3000}]
)


@law("r1-run", world=st.integers(1, 5), value=VALUES, schedule=schedules())
def run_contract(run: Watched, world: int, value: Any, schedule: DrawnSchedule) -> None:
    """`run` calls the program once on every rank and returns the results by rank, in whichever order ranks end."""
    for rank, got in enumerate(run(world, partial(introduced, value=value), schedule).values()):
        same(
            got,
            (rank, world, "run", rank, value),
            f"(rank, world size, run, rank of the trace, what it was told) on rank {rank}",
        )


def closed(c: RecordedCommunicator) -> Any:
    """Make calls after ``close``, and close again.

    Raises:
        LawBroken: If a call is not refused.
    """
    channel, part = opened(c, SMALL), c.split("s")
    channel.publish(0, SMALL.make(0) if c.rank == 0 else None)
    if c.close() != ():
        raise LawBroken("close() tells of works")
    calls: dict[str, Callable[[], Any]] = {
        "barrier": c.barrier,
        "barrier of a split": part.barrier,
        "fetch": lambda: channel.fetch(0),
        "publish": lambda: channel.publish(1, None),
        "latest": channel.latest,
        "split": lambda: c.split("t"),
    }
    for name, call in calls.items():
        try:
            call()
        except ProtocolError:
            continue
        raise LawBroken(f"{name} went on after close()")
    ends = c.close(), part.close()
    c.abort("too late to matter")
    c.check()
    return ends


@law("r2-closed", world=st.integers(1, 3), schedule=schedules())
def after_close(run: Watched, world: int, schedule: DrawnSchedule) -> None:
    """After close() every call is refused, and closing again or aborting has no effect."""
    for rank, ends in enumerate(run(world, closed, schedule).values()):
        same(ends, ((), ()), f"what closing again tells on rank {rank}")


def split_closed(c: RecordedCommunicator, early: list[int], again: bool) -> Any:
    """Close a split on the ranks outside of ``early`` only, or on all ranks and open it again if ``again``."""
    part = c.split("s")
    channel = opened(part, SMALL)
    channel.publish(0, SMALL.make(0) if c.rank == 0 else None)
    part.barrier()
    if again:  # all ranks close the split and open it again
        part.close()
        part = c.split("s")
        channel = opened(part, SMALL)
        channel.publish(0, SMALL.make("again") if c.rank == 0 else None)
        return bits(channel.fetch(0)), c.close()
    return None, c.close() if c.rank in early else part.close() + c.close()


@law(
    "r3-split-closed",
    world=st.integers(1, 4),
    order=st.permutations(range(4)),
    again=st.booleans(),
    schedule=schedules(),
)
def split_closes(run: Watched, world: int, order: list[int], again: bool, schedule: DrawnSchedule) -> None:
    """A split may be closed before its parent, also on some ranks only, and its name may be used again."""
    program = partial(split_closed, early=order[:2], again=again)
    for rank, (got, leaked) in enumerate(run(world, program, schedule).values()):
        same(
            got,
            bits(SMALL.make("again")) if again else None,
            f"what rank {rank} read in the split that was opened again",
        )
        same(leaked, (), f"what closing tells on rank {rank}")


def uneven(c: RecordedCommunicator, short: int, by: int) -> Any:
    """Publish three versions, but ``by`` fewer on rank ``short``; nobody reads them."""
    channel = opened(c, SMALL, bound=3)
    for version in range(3 - by * (c.rank == short)):
        channel.publish(version, SMALL.make(version) if c.rank == 0 else None)


@law("r4-uneven", world=st.integers(2, 3), short=st.integers(0, 2), by=st.integers(1, 2), schedule=schedules())
def uneven_ends(run: Watched, world: int, short: int, by: int, schedule: DrawnSchedule) -> None:
    """Ranks that published unequal numbers of versions get an error at the end, even if nothing missing is read."""
    short %= world
    ended = run(world, partial(uneven, short=short, by=by), schedule)
    for rank, error in ended.errors.items():
        expect(type(error) in (ProtocolError, CommAborted), f"rank {rank} ended with {error!r}")
    expect(set(ended.errors) == set(range(world)), f"rank(s) {sorted(ended.results)} of {world} ended well")
    message = f"`run` raised {ended.raised!r}, where a ProtocolError is due that tells of close()"
    expect(isinstance(ended.raised, ProtocolError) and "close()" in str(ended.raised), message)


UNFIT: dict[str, tuple[Callable[[RecordedCommunicator], Any], str]] = {
    "channel twice": (lambda c: opened(c, SMALL, "a"), "is taken"),
    "split twice": (lambda c: c.split("b"), "is taken"),
    "both": (lambda c: c.split("a"), "is taken"),
    "bound": (lambda c: opened(c, SMALL, "c", bound=-1), "0 or more"),
    "source": (lambda c: opened(c, SMALL, "c", src=2), "rank 2 does not exist"),
    "owner": (
        lambda c: c.all_gather_into({0: torch.zeros(1, dtype=torch.float32, device="cpu")}, {}, {0: -1}),
        "rank -1 does not exist",
    ),
}


def opening(c: RecordedCommunicator, case: str) -> Any:
    """Make the invalid call ``UNFIT[case]``."""
    opened(c, SMALL, "a")
    c.split("b")
    UNFIT[case][0](c)


@law("r5-unfit", case=st.sampled_from(sorted(UNFIT)), schedule=schedules())
def unfit(run: Watched, case: str, schedule: DrawnSchedule) -> None:
    """An invalid channel, split or owner is refused on all ranks, with the reason."""
    ended = run(2, partial(opening, case=case), schedule)
    message = f"`run` raised {ended.raised!r}, where a ProtocolError is due that says {UNFIT[case][1]!r}"
    expect(isinstance(ended.raised, ProtocolError) and UNFIT[case][1] in str(ended.raised), message)
    expect(set(ended.errors) == {0, 1}, f"rank(s) {sorted(ended.results)} ended well")


ELSEWHERE: dict[str, Callable[[RecordedCommunicator, RecordedChannel, RecordedWork], Any]] = {
    "barrier": lambda c, _ch, _w: c.barrier(),
    "broadcast": lambda c, _ch, _w: c.broadcast(torch.zeros(1, dtype=torch.float32, device="cpu"), 0),
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


def threaded(c: RecordedCommunicator, calls: list[str]) -> Any:
    """Make ``calls`` from another thread, then continue the run on the rank's own thread."""
    channel = opened(c, SMALL)
    channel.publish(0, SMALL.make(0) if c.rank == 0 else None)
    work = c.broadcast(SMALL.make(1) if c.rank == 0 else SMALL.blank(), 0, async_op=True)
    assert work is not None
    refused: list[str] = []

    def elsewhere() -> None:
        for call in calls:
            try:
                ELSEWHERE[call](c, channel, work)
            except ProtocolError as error:
                if "another thread" in str(error):
                    refused.append(call)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    work.wait()
    c.barrier()
    first = bits(channel.fetch(0))
    channel.publish(1, SMALL.make(1) if c.rank == 0 else None)
    c.split("x")
    return refused, first, c.close()


@law("r6-one-thread", calls=st.permutations(sorted(ELSEWHERE)).map(lambda calls: calls[:4]), schedule=schedules())
def one_thread(run: Watched, calls: list[str], schedule: DrawnSchedule) -> None:
    """A call from another thread than the rank's is refused and has no effect."""
    for rank, got in enumerate(run(2, partial(threaded, calls=calls), schedule).values()):
        same(got, (calls, bits(SMALL.make(0)), ()), f"(which calls were refused, what was read, works) on rank {rank}")
