"""Laws of works, the handles of asynchronous operations: completed and waited for in any order, or never (C1 to C3)."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from vitrail.testing.comm.bench import expect
from vitrail.testing.comm.judging import Watched, law, same
from vitrail.testing.comm.laws.safety import SMALL
from vitrail.testing.comm.payloads import PAYLOADS, Payload, bits, spoil
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedCommunicator, RecordedWork

SIZES = (70_000, 1, 20_000, 0)  # elements of the messages


def _begin(c: RecordedCommunicator, tensor: Tensor, src: int) -> RecordedWork:
    work = c.broadcast(tensor, src, async_op=True)
    assert work is not None
    return work


def permuted(c: RecordedCommunicator, payload: Payload, order: list[int]) -> Any:
    """Begin five broadcasts, wait for them in the order ``order``, and wait again."""
    world = c.world_size
    tensors = [payload.make(i) if c.rank == i % world else payload.blank() for i in range(5)]
    works = [_begin(c, tensor, i % world) for i, tensor in enumerate(tensors)]
    first = {}
    for index in order:
        works[index].wait()
        works[index].wait(0.0)
        assert works[index].exception() is None, "a work that was waited for tells an error"
        first[index] = bits(tensors[index])
    kept = True
    for index, tensor in enumerate(tensors):  # waiting again must not deliver again
        spoil(tensor)
        spoiled = bits(tensor)
        works[index].wait()
        kept = kept and bits(tensor) == spoiled
    return first, kept, c.close()


@law("c1-any-order", world=st.integers(1, 3), payload=PAYLOADS, order=st.permutations(range(5)), schedule=schedules())
def any_order(run: Watched, world: int, payload: Payload, order: list[int], schedule: DrawnSchedule) -> None:
    """Works may be waited for in any order and repeatedly, which delivers nothing again."""
    results = run(world, partial(permuted, payload=payload, order=order), schedule).values()
    for rank, (first, kept, leaked) in enumerate(results):
        for index, got in first.items():
            same(got, bits(payload.make(index)), f"what broadcast {index} gave on rank {rank}")
        expect(kept, f"on rank {rank} waiting again wrote into the tensor again")
        same(leaked, (), f"what is told as waited for by nobody on rank {rank}")


def sizes(c: RecordedCommunicator, order: list[int]) -> Any:
    """Begin broadcasts of the sizes ``SIZES`` and wait for those in ``order``."""
    tensors = [
        torch.full((size,), float(index + 1) if c.rank == 0 else 0.0, dtype=torch.float32, device="cpu")
        for index, size in enumerate(SIZES)
    ]
    works = [_begin(c, tensor, 0) for tensor in tensors]
    seen = []
    for index in order:
        works[index].wait()
        seen.append((index, bool((tensors[index] == index + 1).all())))
    leaked = len(c.close())
    return seen, [float(tensor.sum()) for tensor in tensors], leaked


@law("c1-sizes", world=st.integers(2, 3), order=st.lists(st.integers(0, 3), max_size=6), schedule=schedules())
def big_and_small(run: Watched, world: int, order: list[int], schedule: DrawnSchedule) -> None:
    """Concurrent messages of different sizes arrive intact, waited for in any order or never."""
    for rank, (seen, sums, leaked) in enumerate(run(world, partial(sizes, order=order), schedule).values()):
        for index, is_whole in seen:
            expect(
                is_whole, f"message {index} of {SIZES[index]} numbers is not whole on rank {rank} when it is waited for"
            )
        same(sums, [float(size * (index + 1)) for index, size in enumerate(SIZES)], f"the sums on rank {rank}")
        same(leaked, len(set(range(4)) - set(order)), f"how many works were waited for by nobody on rank {rank}")


def dropping(c: RecordedCommunicator, dropped: set[int], pause: bool) -> Any:
    """Begin five broadcasts and drop the works in ``dropped`` without waiting; rest before closing if ``pause``."""
    tensors = [SMALL.make(i) if c.rank == i % c.world_size else SMALL.blank() for i in range(5)]
    for index, tensor in enumerate(tensors):
        target = (
            torch.zeros(index, dtype=torch.float32, device="cpu")
            if index in dropped
            else torch.zeros(0, dtype=torch.float32, device="cpu")
        )
        work = _begin(c, tensor, index % c.world_size)
        c.broadcast(target, 0)
        if index not in dropped:
            work.wait()
        del work
        gc.collect(0)
    if pause:
        c.rest(1.0)
    leaked = c.close()
    return [bits(tensor) for tensor in tensors], leaked


@law(
    "c2-dropped",
    world=st.integers(1, 3),
    dropped=st.sets(st.integers(0, 4)),
    pause=st.booleans(),
    schedule=schedules(),
)
def dropped_works(run: Watched, world: int, dropped: set[int], pause: bool, schedule: DrawnSchedule) -> None:
    """A work without a wait is delivered all the same, and close() reports it."""
    expected = tuple(f"broadcast(int32 2, src={index % world})" for index in sorted(dropped))
    for rank, (got, leaked) in enumerate(
        run(world, partial(dropping, dropped=dropped, pause=pause), schedule).values()
    ):
        same(got, [bits(SMALL.make(index)) for index in range(5)], f"what rank {rank} has in the end")
        same(leaked, expected, f"what is told as waited for by nobody on rank {rank}")


class _Holder:
    """Object whose finaliser waits for a work."""

    def __init__(self, work: RecordedWork, tensor: Tensor, done: list[Any]):
        self.work, self.tensor, self.done = work, tensor, done

    def __del__(self) -> None:
        self.work.wait()
        self.done.append(bits(self.tensor))


def finalised(c: RecordedCommunicator) -> Any:
    """Wait for a broadcast in a finaliser."""
    done: list[Any] = []
    tensor = SMALL.make(0) if c.rank == 0 else SMALL.blank()
    holder = _Holder(_begin(c, tensor, 0), tensor, done)
    del holder
    return done, c.close()


@law("c2-finaliser", world=st.integers(1, 3), schedule=schedules())
def finaliser(run: Watched, world: int, schedule: DrawnSchedule) -> None:
    """A finaliser may wait for a work."""
    for rank, (done, leaked) in enumerate(run(world, finalised, schedule).values()):
        same(done, [bits(SMALL.make(0))], f"what the finaliser on rank {rank} saw")
        same(leaked, (), f"what is told as waited for by nobody on rank {rank}")


def asking(c: RecordedCommunicator, payload: Payload, pauses: list[int]) -> Any:
    """Ask whether a gather is complete after a rest of ``pauses`` milliseconds, and read its tensors in either case."""
    owner, seen = {key: key for key in range(c.world_size)}, []
    for pause in pauses:
        out = {key: payload.blank() for key in owner}
        work = c.all_gather_into(out, {c.rank: payload.make(c.rank)}, owner, async_op=True)
        assert work is not None
        c.rest(pause * 1e-3)
        is_here, early = work.is_completed(), [bits(out[key]) for key in owner]
        spans = len(c.trace.spans)
        if is_here:
            work.wait(0.0)
        waited = len(c.trace.spans) - spans
        work.wait()
        seen.append((is_here, early, waited, [bits(out[key]) for key in owner]))
    return seen


@law(
    "c3-completed",
    world=st.integers(1, 4),
    payload=PAYLOADS,
    pauses=st.lists(st.integers(0, 300), max_size=4),
    schedule=schedules(),
)
def completed(run: Watched, world: int, payload: Payload, pauses: list[int], schedule: DrawnSchedule) -> None:
    """A work that reports completion can be read immediately; before, none of its data is visible."""
    new = [bits(payload.make(key)) for key in range(world)]
    old = [bits(payload.blank())] * world
    for rank, seen in enumerate(run(world, partial(asking, payload=payload, pauses=pauses), schedule).values()):
        for is_here, early, waited, late in seen:
            same(
                early,
                new if is_here else old,
                f"what rank {rank} sees of a gather that is {'' if is_here else 'not '}complete",
            )
            expect(waited == 0, f"rank {rank} waited for a gather that was complete")
            expect(is_here or world > 1, "one rank alone has to wait")
            same(late, new, f"what rank {rank} gathered")
