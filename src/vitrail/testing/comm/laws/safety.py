"""Laws of safety: reads return exactly what was written, in private copies (S1 to S7)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from vitrail.errors import CommAborted, CommError, ProtocolError
from vitrail.testing.comm.bench import LawBroken, expect
from vitrail.testing.comm.judging import Watched, law, opened, same
from vitrail.testing.comm.payloads import PAYLOADS, Payload, bits
from vitrail.testing.comm.schedules import DrawnSchedule, schedules
from vitrail.testing.comm.telling import RecordedCommunicator

WORLDS = st.integers(1, 4)
BOUNDS = st.integers(0, 3)
SMALL = Payload(torch.int32, (2,))


def reads(c: RecordedCommunicator, payload: Payload, bound: int, last: int) -> Any:
    """Read every version within the bound at every step; the last rank publishes."""
    src, got = c.world_size - 1, {}
    channel = opened(c, payload, src=src, bound=bound)
    for version in range(last + 1):
        channel.publish(version, payload.make(version) if c.rank == src else None)
        for at in range(max(0, version - bound), version + 1):
            got[version, at] = bits(channel.fetch(at))
    return got


@law(
    "s1-integrity",
    world=WORLDS,
    payload=PAYLOADS,
    bound=BOUNDS,
    last=st.integers(0, 5),
    schedule=schedules(),
    checksums=st.booleans(),
)
def integrity(
    run: Watched, world: int, payload: Payload, bound: int, last: int, schedule: DrawnSchedule, checksums: bool
) -> None:
    """What is fetched is bit for bit what was published."""
    program = partial(reads, payload=payload, bound=bound, last=last)
    for rank, got in enumerate(run(world, program, schedule, checksums=checksums).values()):
        expect(len(got) == sum(min(version, bound) + 1 for version in range(last + 1)), f"rank {rank} read too little")
        for (step, at), value in got.items():
            same(value, bits(payload.make(at)), f"what rank {rank} fetched at step {step} as version {at}")


def spoiled(c: RecordedCommunicator, payload: Payload, delete: bool) -> Any:
    """Send tensors by channel, broadcast and gather, and overwrite or delete them immediately afterwards."""
    owner = {key: key for key in range(c.world_size)}
    channel = opened(c, payload)
    value = payload.make("channel") if c.rank == 0 else None
    channel.publish(0, value)
    c.spoil(value, "what it published")
    spread = payload.make("broadcast") if c.rank == 0 else payload.blank()
    works = [c.broadcast(spread, 0, async_op=True)]
    c.spoil(spread if c.rank == 0 else None, "what it broadcast")
    out, mine = {key: payload.blank() for key in owner}, {c.rank: payload.make("gather", c.rank)}
    works.append(c.all_gather_into(out, mine, owner, async_op=True))
    c.spoil(mine[c.rank], "what it gave to be gathered")
    if delete:
        del value, mine
        gc.collect(0)
    for work in works:
        assert work is not None
        work.wait()
    return bits(channel.fetch(0)), bits(spread) if c.rank else None, [bits(out[key]) for key in owner]


@law("s2-snapshot", world=WORLDS, payload=PAYLOADS, schedule=schedules(), delete=st.booleans())
def snapshot(run: Watched, world: int, payload: Payload, schedule: DrawnSchedule, delete: bool) -> None:
    """Changes of a tensor after it was published, broadcast or gathered are not visible to any rank."""
    for rank, (fetched, spread, gathered) in enumerate(
        run(world, partial(spoiled, payload=payload, delete=delete), schedule).values()
    ):
        same(fetched, bits(payload.make("channel")), f"what rank {rank} fetched")
        same(spread, bits(payload.make("broadcast")) if rank else None, f"what rank {rank} received by broadcast")
        same(gathered, [bits(payload.make("gather", key)) for key in range(world)], f"what rank {rank} gathered")


def constants(c: RecordedCommunicator, bound: int, size: int) -> Any:
    """Publish versions filled with one number each; readers fetch the newest within the bound."""
    channel, read = c.channel("a", src=0, shape=(size,), dtype=torch.int64, max_staleness=bound), []
    for version in range(8):
        channel.publish(version, torch.full((size,), version, dtype=torch.int64, device="cpu") if c.rank == 0 else None)
        at, got = channel.fetch_within(version)
        read.append((version, at, sorted(set(got.tolist()))))
    return read


@law("s3-no-torn-reads", world=st.integers(2, 4), bound=BOUNDS, schedule=schedules())
def no_torn_reads(run: Watched, world: int, bound: int, schedule: DrawnSchedule) -> None:
    """A read is never a mixture of versions."""
    for rank, read in enumerate(run(world, partial(constants, bound=bound, size=4096), schedule).values()):
        for version, at, found in read:
            expect(version - bound <= at <= version, f"rank {rank} was given version {at} at step {version}")
            same(found, [at], f"the numbers that rank {rank} finds in version {at}, all of them,")


def private(c: RecordedCommunicator, payload: Payload) -> Any:
    """Overwrite tensors that were fetched or gathered, and read again."""
    channel, first = opened(c, payload), []
    channel.publish(0, payload.make(0) if c.rank == 0 else None)
    for _ in range(2):
        got = channel.fetch(0)
        first.append(bits(got))
        c.spoil(got, "what it fetched")
    owner = {key: key for key in range(c.world_size)}
    mine = {c.rank: payload.make(c.rank)}
    out = {key: payload.blank() for key in owner}
    c.all_gather_into(out, mine, owner)
    for key, tensor in out.items():
        c.spoil(tensor, f"what it gathered of rank {key}")  # possibly before other ranks read theirs
    c.barrier()
    again = {key: payload.blank() for key in owner}
    c.all_gather_into(again, mine, owner)
    return first, bits(mine[c.rank]), [bits(again[key]) for key in owner], bits(channel.fetch(0))


@law("s4-private-result", world=st.integers(2, 4), payload=PAYLOADS, schedule=schedules())
def private_result(run: Watched, world: int, payload: Payload, schedule: DrawnSchedule) -> None:
    """A tensor that was read is private: changes of it are not visible to other reads."""
    expected = bits(payload.make(0))
    for rank, (first, mine, gathered, last) in enumerate(
        run(world, partial(private, payload=payload), schedule).values()
    ):
        same([*first, last], [expected] * 3, f"what rank {rank} fetched three times")
        same(mine, bits(payload.make(rank)), f"what rank {rank} gave to be gathered")
        same(gathered, [bits(payload.make(key)) for key in range(world)], f"what rank {rank} gathered the second time")


def newest(c: RecordedCommunicator, bound: int, length: int) -> Any:
    """Read the newest versions of two channels of one shape with different publishers."""
    channels = [opened(c, SMALL, name, src, bound) for name, src in (("a", 0), ("b", c.world_size - 1))]
    read = []
    for version in range(length):
        for channel in channels:
            channel.publish(version, SMALL.make(channel.name, version) if c.rank == channel.src else None)
            at, got = channel.fetch_within(version)
            read.append((channel.name, at, bits(got)))
    return read


@law("s5-no-invention", world=WORLDS, bound=BOUNDS, length=st.integers(1, 6), schedule=schedules())
def no_invention(run: Watched, world: int, bound: int, length: int, schedule: DrawnSchedule) -> None:
    """Only values published under this name and version in this run are ever read."""
    for rank, read in enumerate(run(world, partial(newest, bound=bound, length=length), schedule).values()):
        same(len(read), 2 * length, f"how often rank {rank} read")
        for name, version, got in read:
            same(got, bits(SMALL.make(name, version)), f"version {version} of channel {name!r} on rank {rank}")


def _other_operation(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    c.barrier() if is_odd else _broadcast(c, (2, 3), torch.float32, source, held)


def _other_shape(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    _broadcast(c, (3, 2) if is_odd else (2, 3), torch.float32, source, held)


def _other_size(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    _broadcast(c, (70_000,) if is_odd else (4,), torch.float32, source, held)


def _other_type(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    _broadcast(c, (2, 3), torch.int32 if is_odd else torch.float32, source, held)


def _other_source(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    _broadcast(c, (2, 3), torch.float32, odd if is_odd else source, held)


def _early_end(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    c.close() if is_odd else _broadcast(c, (2, 3), torch.float32, source, held)


def _other_owners(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    _gather(c, {key: (key + is_odd) % c.world_size for key in range(c.world_size)}, held)


def _other_keys(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    _gather(c, {key: key % c.world_size for key in range(c.world_size + is_odd)}, held)


def _other_order(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    for src in [source, odd][:: -1 if is_odd else 1]:
        _broadcast(c, (2, 3), torch.float32, src, held)


def _other_channel(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    c.channel("c", src=0, shape=(4 if is_odd else 5,), dtype=torch.float32)


def _other_bound(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    c.channel("c", src=0, shape=(4,), dtype=torch.float32, max_staleness=1 + is_odd)


def _other_split(c: RecordedCommunicator, is_odd: bool, odd: int, source: int, held: list[Tensor]) -> None:
    c.split("x" if is_odd else "y")


def _broadcast(
    c: RecordedCommunicator, shape: tuple[int, ...], dtype: torch.dtype, src: int, held: list[Tensor]
) -> None:
    tensor = torch.full(shape, 7 if c.rank == src else -1, dtype=dtype, device="cpu")
    if c.rank != src:
        held.append(tensor)
    c.broadcast(tensor, src)


def _gather(c: RecordedCommunicator, owner: dict[int, int], held: list[Tensor]) -> None:
    out = {key: torch.full((2,), -1.0, dtype=torch.float32, device="cpu") for key in owner}
    held += out.values()
    c.all_gather_into(
        out,
        {key: torch.full((2,), 7.0, dtype=torch.float32, device="cpu") for key in owner if owner[key] == c.rank},
        owner,
    )


DEVIATIONS: dict[str, Callable[[RecordedCommunicator, bool, int, int, list[Tensor]], None]] = {
    "operation": _other_operation,
    "shape": _other_shape,
    "size": _other_size,
    "type": _other_type,
    "source": _other_source,
    "end": _early_end,
    "owners": _other_owners,
    "keys": _other_keys,
    "order": _other_order,
    "channel": _other_channel,
    "bound": _other_bound,
    "split": _other_split,
}


def deviating(c: RecordedCommunicator, kind: str, odd: int) -> Any:
    """Make one operation, differently on rank ``odd`` in the way ``DEVIATIONS[kind]``.

    Raises:
        LawBroken: If a receiving tensor was written to although the ranks disagree.
        CommError: As the operation or the barrier after it does.
    """
    held: list[Tensor] = []
    c.barrier()
    try:
        DEVIATIONS[kind](c, c.rank == odd, odd, (odd + 1) % c.world_size, held)
        if not (kind == "end" and c.rank == odd):
            c.barrier()
    except CommError:
        if any(bool(tensor.ne(-1).any()) for tensor in held):
            raise LawBroken("a tensor was written to, although the ranks disagree") from None
        raise
    return "went on"


@law(
    "s6-mismatch",
    world=st.integers(2, 4),
    odd=st.integers(0, 3),
    kind=st.sampled_from(sorted(DEVIATIONS)),
    schedule=schedules(),
)
def mismatch(run: Watched, world: int, odd: int, kind: str, schedule: DrawnSchedule) -> None:
    """Ranks that make different calls all get an error that names the deviating rank, and no data."""
    odd %= world
    ended = run(world, partial(deviating, kind=kind, odd=odd), schedule)
    for rank, error in ended.errors.items():
        expect(not isinstance(error, LawBroken), f"on rank {rank}: {error}")
        message = f"rank {rank} raised {type(error).__name__}: {error}\n  where a ProtocolError or CommAborted is due"
        expect(type(error) in (ProtocolError, CommAborted), message)
    went_on = sorted(ended.results)
    expect(not went_on, f"rank(s) {went_on} went on, although rank {odd} has another {kind}")
    expect(set(ended.errors) == set(range(world)), f"only ranks {sorted(ended.errors)} of {world} left word")
    expect(isinstance(ended.raised, ProtocolError), f"`run` raised {ended.raised!r}, where a ProtocolError is due")
    expect(f"rank {odd}" in f"{ended.raised} {ended.causes}", f"the error does not name rank {odd}: {ended.raised}")


KEYS: tuple[Sequence[Any], ...] = (tuple(range(5)), ("b", "a"), ((1, "x"), (0, "y"), (1, "a")), ())


def gathers(c: RecordedCommunicator, owner: dict[Any, int], payloads: dict[Any, Payload]) -> Any:
    """Gather the tensors of all keys from their owners once."""
    out = {key: payloads[key].blank() for key in reversed(owner)}
    mine = {key: payloads[key].make(key, "of", owner[key]) for key in owner if owner[key] == c.rank}
    c.all_gather_into(out, mine, owner)
    return {key: bits(tensor) for key, tensor in out.items()}


@law(
    "s7-gather",
    keys=st.sampled_from(KEYS),
    owners=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    payloads=st.lists(PAYLOADS, min_size=5, max_size=5),
    world=st.integers(1, 5),
    schedule=schedules(),
    checksums=st.booleans(),
)
def gather(
    run: Watched,
    keys: Sequence[Any],
    owners: list[int],
    payloads: list[Payload],
    world: int,
    schedule: DrawnSchedule,
    checksums: bool,
) -> None:
    """Every key arrives once, from its owner: ranks with none, one with all, more ranks than keys."""
    owner = {key: number % world for key, number in zip(keys, owners, strict=False)}
    of = dict(zip(keys, payloads, strict=False))
    program = partial(gathers, owner=owner, payloads=of)
    for rank, got in enumerate(run(world, program, schedule, checksums=checksums).values()):
        same(set(got), set(keys), f"the keys that rank {rank} has")
        for key in keys:
            same(got[key], bits(of[key].make(key, "of", owner[key])), f"what rank {rank} gathered as {key!r}")
