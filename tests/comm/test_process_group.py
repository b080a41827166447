"""The laws of communication on real gloo ranks (S, B, C, O, I, W, L)."""

import time
from pathlib import Path

import pytest
import torch
from gloo_laws import WORLDS, law
from hypothesis import strategies as st
from payloads import PAYLOADS, bits, spoil
from pool import values
from programs import Player, outcome_of, sized_programs

from vitrail.comm.header import SIZE
from vitrail.comm.transport import Part
from vitrail.errors import CommAborted, CommError, CommTimeout, ProtocolError, StaleVersion

# ---------------------------------------------------------------------- safety


def integrity(communicator, payload, src):
    channel = communicator.channel("c", src=src, shape=payload.shape, dtype=payload.dtype)
    is_source = communicator.rank == src
    value = payload.make("channel") if is_source else None
    channel.publish(0, value)
    tensor = payload.make("broadcast") if is_source else payload.blank()
    work = communicator.broadcast(tensor, src, async_op=True)
    for given_away in (value, tensor) if is_source else ():
        spoil(given_away)
    work.wait()
    first, second = channel.fetch(0), channel.fetch(0)
    fetched = bits(first)
    spoil(first)
    return fetched, bits(second), bits(channel.fetch(0)), None if is_source else bits(tensor)


@law(world=WORLDS, payload=PAYLOADS, src=st.integers(0, 1), checksums=st.booleans())
def test_s1_s2_s4_what_arrives_is_what_was_sent_and_private(pool, world, payload, src, checksums):
    sent, told = bits(payload.make("channel")), bits(payload.make("broadcast"))
    for rank, got in enumerate(values(pool.run(world, integrity, payload, src, checksums=checksums))):
        assert got == (sent, sent, sent, None if rank == src else told)


def gathers(communicator, payload, owners):
    owner = dict(enumerate(owners))
    out = {key: payload.blank() for key in owner}
    mine = {key: payload.make(key) for key in owner if owner[key] == communicator.rank}
    communicator.all_gather_into(out, mine, owner)
    return [bits(out[key]) for key in owner]


@law(world=WORLDS, payload=PAYLOADS, numbers=st.lists(st.integers(0, 5), max_size=6))
def test_s7_every_key_comes_once_from_its_owner(pool, world, payload, numbers):
    owners = [number % world for number in numbers]
    told = [bits(payload.make(key)) for key in range(len(owners))]
    assert values(pool.run(world, gathers, payload, owners)) == [told] * world


def play(communicator, ops):
    return Player(communicator).play(ops)


@law(drawn=sized_programs(max_world=3, max_size=12))
def test_s5_c1_b1_whole_programs_give_what_they_say(pool, drawn):
    world, ops = drawn
    seen, _ = outcome_of(ops)
    for value, _ in values(pool.run(world, play, ops)):
        assert {index: value[index] for index in seen} == seen


KINDS = ["shape", "dtype", "src", "order", "operation", "owner", "run", "channel", "early end"]


def mismatch(communicator, kind, odd):
    """One rank does something else; no rank may ever see data after that."""
    is_odd, zeros = communicator.rank == odd, torch.zeros
    communicator.barrier()
    if kind == "early end" and is_odd:
        return None
    if kind == "order" and is_odd:
        communicator.barrier()
    if kind == "operation" and is_odd:
        communicator.all_gather_into({0: zeros(4)}, {0: zeros(4)} if odd == 0 else {}, {0: 0})
    elif kind == "owner":
        owner = {0: 0, 1: odd if is_odd else (odd + 1) % communicator.world_size}
        mine = {key: zeros(2) for key in owner if owner[key] == communicator.rank}
        communicator.all_gather_into({0: zeros(2), 1: zeros(2)}, mine, owner)
    elif kind == "channel":
        communicator.channel("c", src=0, shape=(4 if is_odd else 5,), dtype=torch.float32)
    else:
        size = 70_000 if kind == "shape" and is_odd else 4  # also more frames than the others expect
        dtype = torch.int32 if kind == "dtype" and is_odd else torch.float32
        communicator.broadcast(zeros(size, dtype=dtype), 1 if kind == "src" and is_odd else 0)
    communicator.barrier()
    return "data"


@law(world=WORLDS, kind=st.sampled_from(KINDS), odd=st.integers(0, 1))
def test_s6_a_disagreement_raises_and_ends_all(pool, world, kind, odd):
    run_ids = [f"run {rank == odd and kind == 'run'}" for rank in range(world)]
    answers = pool.run(world, mismatch, kind, odd, run_ids=run_ids, timeout=30.0)
    assert not any(answer.died for answer in answers)
    assert all(isinstance(answer.error, CommError) for answer in answers), answers
    assert any(isinstance(answer.error, ProtocolError) for answer in answers)
    assert not any(isinstance(answer.error, CommTimeout) for answer in answers)
    if world == 3:
        told = [answer.error.culprit for answer in answers if isinstance(answer.error, CommAborted)]
        assert set(told) <= {odd}


def foreign(communicator, odd):
    """Past the communicator, which would never do this: a source whose header is another one."""
    transport = communicator._transport
    transport.open("x")
    header = bytes([communicator.rank == odd]) * SIZE
    mine = {0: torch.ones(8, dtype=torch.uint8)} if communicator.rank == odd else {}
    posting = transport.post("x", 0, header, [Part(odd, 8)], mine, "sources")
    transport.wait(lambda: posting.conflict() is not None or posting.is_complete(), transport.clock() + 5.0)
    communicator.barrier()
    return posting.is_complete(), posting.conflict()


def test_s6_a_foreign_version_in_a_channel_is_never_complete(pool):
    told = (False, (1, bytes([1]) * SIZE))
    assert values(pool.run(3, foreign, 1)) == [told, (True, None), told]


# ---------------------------------------------------------------------- staleness


def lagging(communicator, lag, steps):
    src = communicator.world_size - 1
    channel = communicator.channel("c", src=src, shape=(), dtype=torch.int64, max_staleness=lag)
    used = []
    for step in range(steps):
        channel.publish(step, torch.tensor(step) if communicator.rank == src else None)
        used.append(int(channel.fetch(max(0, step - lag))))
        within, value = channel.fetch_within(step)
        assert within == int(value) and max(0, step - lag) <= within <= step
        assert channel.latest() <= step
    return used


@law(world=WORLDS, lag=st.integers(0, 3), steps=st.integers(1, 8))
def test_b1_b2_b5_the_exact_version_is_used_on_every_rank(pool, world, lag, steps):
    told = [max(0, step - lag) for step in range(steps)]
    assert values(pool.run(world, lagging, lag, steps)) == [told] * world


def lead(communicator, lag, told):
    """The source publishes as fast as it may, the reader once it is as far ahead as may be; how far that was."""
    channel = communicator.channel("c", src=0, shape=(2,), dtype=torch.float32, max_staleness=lag)
    told, ahead, limit = Path(told), 0, time.monotonic() + 60
    if communicator.rank == 1:
        while told.stat().st_size < lag + 2 and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.1)  # for a source that would go further
        ahead = told.stat().st_size
    for step in range(lag + 5):
        channel.publish(step, torch.full((2,), float(step)) if communicator.rank == 0 else None)
        if communicator.rank == 0:
            with told.open("ab") as file:
                file.write(b".")
    return ahead


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_b3_a_source_is_never_further_ahead_than_its_slots(pool, tmp_path, lag):
    told = tmp_path / "published"
    told.touch()
    assert values(pool.run(2, lead, lag, str(told)))[1] == lag + 2


def wrong_versions(communicator):
    channel = communicator.channel("c", src=0, shape=(), dtype=torch.float32, max_staleness=1)
    for step in range(4):
        channel.publish(step, torch.tensor(float(step)) if communicator.rank == 0 else None)
    with pytest.raises(StaleVersion):
        channel.fetch(1)
    with pytest.raises(ValueError, match="no version -1"):
        channel.fetch(-1)
    assert float(channel.fetch(2)) == 2.0
    communicator.barrier()
    if communicator.rank == 1:
        channel.fetch(4)
    communicator.barrier()


def test_b4_wrong_versions_raise_and_never_give_a_neighbour(pool):
    first, second = pool.run(2, wrong_versions)
    assert isinstance(second.error, ProtocolError) and "fetch(4) before it was posted" in str(second.error)
    assert isinstance(first.error, CommAborted) and first.error.culprit == 1
