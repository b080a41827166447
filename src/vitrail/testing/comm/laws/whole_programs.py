"""Laws of whole programs: results do not depend on the schedule (E3), and failures leave no partial data (F3)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from hypothesis import strategies as st

from vitrail.errors import CommAborted
from vitrail.testing.comm.bench import Ended, LawBroken, expect
from vitrail.testing.comm.judging import Watched, law, same
from vitrail.testing.comm.programs import Op, Player, outcome_of, programs, sized_programs
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedCommunicator, show


def play(c: RecordedCommunicator, ops: Sequence[Op]) -> Any:
    """Run a drawn program on this rank."""
    return Player(c).play(ops)


def check_program(ops: Sequence[Op], ended: Ended) -> None:
    """Assert that every rank saw the expected values, and that works without a wait were delivered and reported.

    Raises:
        LawBroken: If a value differs, or the number of reported works is impossible.
    """
    seen, works = outcome_of(ops)
    waits = {at: [op.number for op in ops if op.kind == "wait" and op.at == at] for at in range(len(works))}
    dropped = sum(not waits[at] for at in waits)
    doubtful = sum(bool(numbers) and not any(numbers) for numbers in waits.values())
    for rank, (value, leaked) in enumerate(ended.values()):
        same(sorted(value), sorted(seen), f"which operations gave something on rank {rank}")
        for index, wanted in seen.items():
            same(
                value[index],
                wanted,
                f"what operation {index + 1} of the program ({ops[index].kind}) gave on rank {rank}",
            )
        message = f"{len(leaked)} works are told as waited for by nobody on rank {rank}: {show(leaked)}"
        expect(dropped <= len(leaked) <= dropped + doubtful, message)


@law("e3-programs", drawn=sized_programs(), schedule=schedules(), checksums=st.booleans())
def any_program(run: Watched, drawn: tuple[int, Sequence[Op]], schedule: DrawnSchedule, checksums: bool) -> None:
    """Any program has its defined results on every rank, for all speeds of ranks and orders of messages."""
    world, ops = drawn
    check_program(ops, run(world, partial(play, ops=ops), schedule, checksums=checksums))


def play_or_fail(c: RecordedCommunicator, ops: Sequence[Op], rank: int, at: int) -> Any:
    """Run a program that rank ``rank`` leaves before operation ``at`` by raising; check the received tensors.

    Raises:
        ValueError: On rank ``rank``.
        AssertionError: If a tensor was written in part.
    """
    player = Player(c)
    try:
        if c.rank == rank:
            player.play_until(ops, at)
            raise ValueError("here")
        return player.play(ops)
    finally:
        player.assert_whole(ops)


@law("f3-no-partial-data", ops=programs(3), rank=st.integers(0, 2), at=st.integers(0, 10), schedule=schedules())
def no_partial_data(run: Watched, ops: Sequence[Op], rank: int, at: int, schedule: DrawnSchedule) -> None:
    """A tensor that is held when a rank fails is entirely old or entirely new."""
    ended = run(3, partial(play_or_fail, ops=ops, rank=rank, at=min(at, len(ops))), schedule)
    for other, error in ended.errors.items():
        if isinstance(error, (AssertionError, LawBroken)):
            raise LawBroken(f"on rank {other}: {error}")
        due = ValueError if other == rank else CommAborted
        expect(type(error) is due, f"rank {other} raised {error!r}, where a {due.__name__} is due")
        expect(not isinstance(error, CommAborted) or error.culprit == rank, f"rank {other} blames another: {error}")
    failed = set(ended.errors) | ended.absent - {rank}
    expect(failed == {0, 1, 2}, f"rank(s) {sorted(ended.results)} ended well, although rank {rank} failed")
    expect(
        isinstance(ended.raised, ValueError), f"`run` raised {ended.raised!r}, where rank {rank}'s ValueError is due"
    )
