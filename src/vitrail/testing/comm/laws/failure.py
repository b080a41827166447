"""Laws of failure and slowness: every rank ends, and errors name the culprit (F1 to F5, W2)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st

from vitrail.errors import CommAborted, CommTimeout, ProtocolError
from vitrail.testing.comm.bench import Ended, LawBroken, expect
from vitrail.testing.comm.judging import REAL, Watched, law, opened
from vitrail.testing.comm.laws.safety import SMALL
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedChannel, RecordedCommunicator

SHORT_S = 0.3  # timeout of a wait that must time out
LOOK_S = 0.01  # between two checks for an abort
STEPS = 6  # of the program ``stepping``


def blamed(ended: Ended, world: int, culprit: int, own: type[BaseException], reason: str) -> None:
    """Assert that every rank failed, the culprit with its own error and the others with a CommAborted that names it.

    Args:
        ended: The run.
        world: Number of ranks.
        culprit: The rank that failed.
        own: Type of the exception that it raised.
        reason: Text that the others' reason contains.

    Raises:
        LawBroken: If a rank ended otherwise.
    """
    for rank, error in ended.errors.items():
        if rank == culprit:
            expect(type(error) is own, f"rank {rank} ended with {error!r}, where its own {own.__name__} is due")
            continue
        message = (
            f"rank {rank} ended with {type(error).__name__}: {error}\n  where a CommAborted by rank {culprit} is due"
        )
        expect(isinstance(error, CommAborted) and error.culprit == culprit and reason in error.reason, message)
    expect(set(ended.errors) == set(range(world)), f"rank(s) {sorted(ended.results)} of {world} ended well")


def stepping(c: RecordedCommunicator, culprit: int, at: int, end: Callable[[], None]) -> Any:
    """Publish, fetch and meet at a barrier in each step; rank ``culprit`` calls ``end`` before step ``at``."""
    channel = opened(c, SMALL)
    for step in range(STEPS):
        c.note(f"step {step}")
        if (c.rank, step) == (culprit, at):
            end()
        channel.publish(step, SMALL.make(step) if c.rank == 0 else None)
        channel.fetch(step)
        c.barrier()
    if (c.rank, at) == (culprit, STEPS):
        end()


def fail(error: BaseException) -> None:
    """Raise the given error; bound by ``partial`` as the end of a program."""
    raise error


ERRORS = (KeyError("mine"), SystemExit(3), GeneratorExit(), ZeroDivisionError("by hand"))


@law(
    "f2-exception",
    world=st.integers(2, 4),
    rank=st.integers(0, 3),
    at=st.integers(0, STEPS),
    error=st.sampled_from(ERRORS),
    schedule=schedules(),
)
def exception(run: Watched, world: int, rank: int, at: int, error: BaseException, schedule: DrawnSchedule) -> None:
    """An exception on one rank ends all ranks with errors that name it, and is raised by `run`."""
    rank %= world
    ended = run(world, partial(stepping, culprit=rank, at=at, end=partial(fail, error)), schedule)
    blamed(ended, world, rank, type(error), type(error).__name__)
    message = f"`run` raised {ended.raised!r}, where {error!r} of rank {rank} is due"
    expect(type(ended.raised) is type(error) and str(error) in str(ended.raised), message)


def kill() -> None:
    """Kill this process by SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    """End this process by ``os._exit``, without cleanup."""
    os._exit(3)


@law(
    "f1-killed",
    "processes",
    world=st.integers(2, 3),
    rank=st.integers(0, 2),
    at=st.integers(0, STEPS - 1),
    end=st.sampled_from([kill, leave]),
)
def killed(run: Watched, world: int, rank: int, at: int, end: Callable[[], None]) -> None:
    """When a rank's process dies, all other ranks and `run` raise an error that names it."""
    rank %= world
    ended = run(world, partial(stepping, culprit=rank, at=at, end=end))
    expect(rank not in ended.reports, f"rank {rank} was to die, and did not")
    for other, error in ended.errors.items():
        message = (
            f"rank {other} ended with {type(error).__name__}: {error}\n  where a CommAborted by rank {rank} is due"
        )
        expect(isinstance(error, CommAborted) and error.culprit == rank, message)
    expect(not ended.results, f"rank(s) {sorted(ended.results)} ended well, although rank {rank} died")
    message = f"`run` raised {ended.raised!r}, where a CommAborted by rank {rank} is due"
    expect(isinstance(ended.raised, CommAborted) and ended.raised.culprit == rank, message)


WAITS: dict[str, Callable[[RecordedCommunicator, RecordedCommunicator, RecordedChannel], Any]] = {
    "barrier": lambda c, s, ch: c.barrier(),
    "split": lambda c, s, ch: s.broadcast(torch.zeros(1, dtype=torch.float32, device="cpu"), 1),
    "fetch": lambda c, s, ch: (ch.publish(0, None), ch.fetch(0)),
    "publish": lambda c, s, ch: [ch.publish(v, None) for v in range(9)],
    "open": lambda c, s, ch: c.split("another"),
}


def leaving(c: RecordedCommunicator, wait: str) -> Any:
    """End rank 0 immediately, while the others wait for it in the operation ``WAITS[wait]``."""
    part = c.split("s")
    channel = part.channel("c", src=0, shape=(1,), dtype=torch.float32)
    if c.rank != 0:
        WAITS[wait](c, part, channel)


@law("f2-early-end", wait=st.sampled_from(sorted(WAITS)), schedule=schedules())
def early_end(run: Watched, wait: str, schedule: DrawnSchedule) -> None:
    """A rank that ends early ends the others at their next operation in any communicator, before a timeout."""
    ended = run(2, partial(leaving, wait=wait), schedule)
    expect(set(ended.errors) == {0, 1}, f"rank(s) {sorted(ended.results)} ended well")
    message = f"`run` raised {ended.raised!r}\n  where a ProtocolError is due that says that rank 0 calls close()"
    expect(isinstance(ended.raised, ProtocolError) and "rank 0 calls close()" in str(ended.raised), message)


def aborting(c: RecordedCommunicator, order: list[int]) -> Any:
    """Abort the run twice on each rank, with reasons of its own, and check that every later call raises.

    Raises:
        LawBroken: If a call after the abort does not raise.
        CommAborted: Of the last call.
    """
    c.barrier()
    for rank in order:
        if rank == c.rank:
            c.abort(f"first of {rank}")
            c.abort(f"second of {rank}")
    found = []
    for call in (c.check, c.barrier, lambda: c.split("x")):
        try:
            call()
        except CommAborted as error:
            found.append(error)
    if len(found) < 3:
        raise LawBroken(f"only {len(found)} of 3 calls after an abort raised it")
    raise found[-1]


@law("f4-first-abort", world=st.integers(2, 4), order=st.permutations(range(4)), schedule=schedules())
def first_abort(run: Watched, world: int, order: list[int], schedule: DrawnSchedule) -> None:
    """Of several aborts the first one counts, and every rank reports the same one."""
    ended = run(world, partial(aborting, order=order), schedule)
    for rank, error in ended.errors.items():
        expect(isinstance(error, CommAborted), f"rank {rank} ended with {type(error).__name__}: {error}")
    expect(len(ended.causes) == 1, f"the ranks were told different things: {sorted(ended.causes)}")
    culprit, reason = next(iter(ended.causes))
    expect(reason == f"first of {culprit}", f"rank {culprit} is said to have said {reason!r}")


CALLS: dict[str, Callable[[RecordedCommunicator, RecordedChannel], Any]] = {
    "barrier": lambda c, _: c.barrier(),
    "broadcast": lambda c, _: c.broadcast(torch.zeros(2, dtype=torch.float32, device="cpu"), 0),
    "async": lambda c, _: c.broadcast(torch.zeros(2, dtype=torch.float32, device="cpu"), 0, async_op=True),
    "gather": lambda c, _: c.all_gather_into({}, {}, {}),
    "bad gather": lambda c, _: c.all_gather_into({}, {5: torch.zeros(1, dtype=torch.float32, device="cpu")}, {}),
    "bad rank": lambda c, _: c.broadcast(torch.zeros(2, dtype=torch.float32, device="cpu"), 17),
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


def _aborted(call: Callable[[], Any], name: str) -> None:
    try:
        call()
    except CommAborted as error:
        if (error.culprit, error.reason) != (1, "enough"):
            raise LawBroken(f"{name} was told {error}") from None
        return
    raise LawBroken(f"{name} went on after the abort")


def revoked(c: RecordedCommunicator) -> Any:
    """Make every call of ``CALLS`` after rank 1 has aborted the run.

    Raises:
        LawBroken: If a call does not raise the abort.
    """
    channel = opened(c, SMALL)
    channel.publish(0, SMALL.make(0) if c.rank == 0 else None)
    channel.fetch(0)
    c.barrier()
    if c.rank == 1:
        c.abort("enough")
    _aborted(c.barrier, "the barrier that it meets")
    for name, call in CALLS.items():
        _aborted(partial(call, c, channel), name)
    if c.close() != ():
        raise LawBroken("close() tells of works")


@law("f4-revoked", world=st.integers(2, 3), schedule=schedules())
def every_call(run: Watched, world: int, schedule: DrawnSchedule) -> None:
    """After an abort every call on every rank raises it, valid or not; only close() does not."""
    ended = run(world, revoked, schedule)
    for rank, error in ended.errors.items():
        expect(isinstance(error, CommAborted), f"on rank {rank}: {error}")


PLACES = ("barrier", "fetch", "wait", "close", "publish")


def held_up(c: RecordedCommunicator, place: str, culprit: int) -> Any:
    """Wait in operation ``place`` for the last rank, which never arrives, until a thread of rank ``culprit`` aborts."""
    last = c.world_size - 1
    channel = c.channel("a", src=0, shape=(2,), dtype=torch.int32, max_staleness=0)
    awake = c.channel("awake", src=0, shape=(2,), dtype=torch.int32)
    work = (
        c.broadcast(torch.zeros(2, dtype=torch.float32, device="cpu"), last, async_op=True) if c.rank != last else None
    )
    awake.publish(0, SMALL.make(0) if c.rank == 0 else None)
    awake.fetch(0)  # rank 0 at least has started
    if c.rank == culprit:
        helper = threading.Thread(target=_abort_later, args=(c,))
        helper.start()
    if c.rank == last:
        _sleep_until_aborted(c)
    if place == "barrier":
        c.barrier()
    elif place == "wait":
        assert work is not None
        work.wait()
    elif place == "close":
        c.close()
    else:
        for version in range(5):
            channel.publish(version, SMALL.make(version) if c.rank == 0 else None)
            if place == "fetch":
                channel.fetch(version)
        c.barrier()


def _abort_later(c: RecordedCommunicator) -> None:
    time.sleep(0.05)  # by then its rank waits, or finds the abort when it begins to
    c.communicator.abort("from outside")


def _sleep_until_aborted(c: RecordedCommunicator) -> None:
    c.tale.say("comes no more, until it hears that the run has ended")
    while True:
        c.check()
        time.sleep(LOOK_S)


@law("f5-other-thread", *REAL, place=st.sampled_from(PLACES), culprit=st.integers(0, 2))
def other_thread(run: Watched, place: str, culprit: int) -> None:
    """An abort from another thread wakes every rank, in whichever operation it waits."""
    ended = run(3, partial(held_up, place=place, culprit=culprit))
    for rank, error in ended.errors.items():
        message = f"rank {rank} ended with {type(error).__name__}: {error}\n  where the abort of rank {culprit} is due"
        expect(isinstance(error, CommAborted) and (error.culprit, error.reason) == (culprit, "from outside"), message)
    expect(set(ended.errors) == {0, 1, 2}, f"rank(s) {sorted(ended.results)} ended well")


def slow(c: RecordedCommunicator, culprit: int, how: str) -> Any:
    """Stop rank ``culprit``; the others learn that they have all arrived, and time out in the operation ``how``."""
    came = [opened(c, SMALL, f"came {rank}", rank) for rank in range(c.world_size)]
    c.note("the second step")
    c.barrier()
    if c.rank == culprit:
        _sleep_until_aborted(c)
    for rank, channel in enumerate(came):
        channel.publish(0, SMALL.make(rank) if c.rank == rank else None)
    for rank, channel in enumerate(came):
        if rank != culprit:
            channel.fetch(0)
    if how == "barrier":
        c.barrier(timeout=SHORT_S)
    elif how == "fetch":
        came[culprit].fetch(0, timeout=SHORT_S)
    else:
        work = c.broadcast(torch.zeros(2, dtype=torch.float32, device="cpu"), culprit, async_op=True)
        assert work is not None
        work.wait(SHORT_S)


@law(
    "w2-timeout",
    *REAL,
    world=st.integers(2, 3),
    culprit=st.integers(0, 2),
    how=st.sampled_from(["barrier", "fetch", "broadcast"]),
)
def timeout(run: Watched, world: int, culprit: int, how: str) -> None:
    """A wait ends at its timeout, names the rank that is behind and where it was, and ends the run on all ranks."""
    culprit %= world
    ended = run(world, partial(slow, culprit=culprit, how=how))
    expect(set(ended.errors) == set(range(world)), f"rank(s) {sorted(ended.results)} of {world} ended well")
    for rank, error in ended.errors.items():
        message = f"rank {rank} ended with {type(error).__name__}: {error}\n  where rank {culprit} is to be named"
        if isinstance(error, CommAborted):
            expect(error.culprit == culprit, message)
        else:
            expect(type(error) is CommTimeout and rank != culprit, message)
            expect(f"rank {culprit} is behind, last seen the second step" in str(error), message)
    message = f"`run` raised {ended.raised!r}, where a CommTimeout is due"
    expect(isinstance(ended.raised, CommTimeout), message)
