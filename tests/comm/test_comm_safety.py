"""Safety: what is read is what was written, whole, private, and never made up (S1 to S7)."""

import gc

import pytest
import torch
from hypothesis import strategies as st
from runners import clean, law, simulate

from vitrail.errors import CommAborted, ProtocolError
from vitrail.testing.comm.payloads import PAYLOADS, Payload, bits, spoil
from vitrail.testing.comm.schedules import schedules

WORLDS = st.integers(1, 4)
BOUNDS = st.integers(0, 3)


def opened(communicator, payload, name="a", src=0, bound=1):
    return communicator.channel(name, src=src, shape=payload.shape, dtype=payload.dtype, max_staleness=bound)


@law(
    world=WORLDS, payload=PAYLOADS, bound=BOUNDS, last=st.integers(0, 5), schedule=schedules(), checksums=st.booleans()
)
def test_s1_what_is_fetched_is_bit_for_bit_what_was_published(run, world, payload, bound, last, schedule, checksums):
    def program(communicator):
        channel, got = opened(communicator, payload, src=world - 1, bound=bound), {}
        for version in range(last + 1):
            channel.publish(version, payload.make(version) if communicator.rank == world - 1 else None)
            for at in range(max(0, version - bound), version + 1):
                got[version, at] = bits(channel.fetch(at))
        return got

    for got in clean(run(world, program, schedule, checksums=checksums)):
        assert len(got) == sum(min(version, bound) + 1 for version in range(last + 1))
        assert all(value == bits(payload.make(at)) for (_, at), value in got.items())


@law(world=WORLDS, payload=PAYLOADS, schedule=schedules(), delete=st.booleans())
def test_s2_what_becomes_of_the_source_is_not_seen(run, world, payload, schedule, delete):
    """Overwritten or deleted right after the call: by publish, broadcast and all_gather_into alike."""

    def program(communicator):
        rank = communicator.rank
        channel = opened(communicator, payload)
        value = payload.make("channel") if rank == 0 else None
        channel.publish(0, value)
        spread = payload.make("broadcast") if rank == 0 else payload.blank()
        works = [communicator.broadcast(spread, 0, async_op=True)]
        owner = {key: key for key in range(world)}
        out, mine = {key: payload.blank() for key in owner}, {rank: payload.make("gather", rank)}
        works.append(communicator.all_gather_into(out, mine, owner, async_op=True))
        given = [tensor for tensor in (value, spread if rank == 0 else None, mine[rank]) if tensor is not None]
        for tensor in given:
            spoil(tensor)
        if delete:
            del given, value, mine
            gc.collect(0)
        for work in works:
            work.wait()
        return bits(channel.fetch(0)), bits(spread), [bits(out[key]) for key in range(world)]

    for rank, (fetched, spread, gathered) in enumerate(clean(run(world, program, schedule))):
        assert fetched == bits(payload.make("channel"))
        assert rank == 0 or spread == bits(payload.make("broadcast"))
        assert gathered == [bits(payload.make("gather", key)) for key in range(world)]


@law(world=st.integers(2, 4), bound=BOUNDS, schedule=schedules())
def test_s3_a_read_is_never_a_mixture(run, world, bound, schedule):
    """Every version is of one number throughout, and readers take whatever is newest."""

    def program(communicator):
        channel = communicator.channel("a", src=0, shape=(4096,), dtype=torch.int64, max_staleness=bound)
        for version in range(8):
            channel.publish(version, torch.full((4096,), version) if communicator.rank == 0 else None)
            at, got = channel.fetch_within(version)
            assert version - bound <= at <= version
            assert got.unique().tolist() == [at]
        return True

    assert all(clean(run(world, program, schedule)))


@law(world=st.integers(2, 4), payload=PAYLOADS, schedule=schedules())
def test_s4_what_is_read_belongs_to_the_reader(run, world, payload, schedule):
    def program(communicator):
        rank, channel = communicator.rank, opened(communicator, payload)
        channel.publish(0, payload.make(0) if rank == 0 else None)
        for _ in range(2):
            got = channel.fetch(0)
            assert bits(got) == bits(payload.make(0))
            spoil(got)
        owner = {key: key for key in range(world)}
        mine = {rank: payload.make(rank)}
        out = {key: payload.blank() for key in owner}
        communicator.all_gather_into(out, mine, owner)
        for tensor in out.values():
            spoil(tensor)  # also the others' parts, and before the others read them
        communicator.barrier()
        assert bits(mine[rank]) == bits(payload.make(rank))
        again = {key: payload.blank() for key in owner}
        communicator.all_gather_into(again, mine, owner)
        return [bits(again[key]) for key in owner], bits(channel.fetch(0))

    for gathered, fetched in clean(run(world, program, schedule)):
        assert gathered == [bits(payload.make(key)) for key in range(world)]
        assert fetched == bits(payload.make(0))


@law(world=st.integers(1, 4), bound=BOUNDS, length=st.integers(1, 6), schedule=schedules())
def test_s5_only_what_was_published_in_this_run_is_ever_read(run, world, bound, length, schedule):
    """Two channels of one shape, written by different ranks, read as new as they come."""
    payload, written = Payload(torch.int32, (2,)), {}

    def program(communicator):
        channels = [opened(communicator, payload, name, src, bound) for name, src in (("a", 0), ("b", world - 1))]
        read = []
        for version in range(length):
            for channel in channels:
                value = payload.make(channel.name, version) if communicator.rank == channel.src else None
                if value is not None:
                    written[channel.name, version] = bits(value)
                channel.publish(version, value)
                read.append((channel.name, *channel.fetch_within(version)))
        return [(name, version, bits(got)) for name, version, got in read]

    values = clean(run(world, program, schedule))
    for read in values:
        assert len(read) == 2 * length
        for name, version, got in read:
            assert got == written[name, version]


def _deviant(kind, communicator, rank):
    """The third operation of a program, done differently by one rank; gives what it wrote into, if anything."""
    is_odd, world = communicator.rank == rank, communicator.world_size
    source = (rank + 1) % world  # so that the odd rank receives
    target = torch.full((2, 3), -1.0)
    if kind == "operation" and is_odd:
        communicator.barrier()
    elif kind == "shape" and is_odd:
        target = torch.full((3, 2), -1.0)
        communicator.broadcast(target, source)
    elif kind == "type" and is_odd:
        target = torch.full((2, 3), -1, dtype=torch.int32)
        communicator.broadcast(target, source)
    elif kind == "source" and is_odd:
        communicator.broadcast(target, rank)
    elif kind == "end" and is_odd:
        return [target]
    elif kind in ("owners", "keys"):
        keys = range(world + (kind == "keys" and is_odd))
        owner = {key: (key + (kind == "owners" and is_odd)) % world for key in keys}
        out = {key: torch.full((2,), -1.0) for key in keys}
        mine = {key: torch.full((2,), 7.0) for key in keys if owner[key] == communicator.rank}
        communicator.all_gather_into(out, mine, owner)
        return list(out.values())
    elif kind == "order":
        other = torch.full((2, 3), -1.0)
        for tensor, src in [(target, source), (other, rank)][:: -1 if is_odd else 1]:
            communicator.broadcast(tensor, src)
        return [target, other]
    else:
        target = torch.full((2, 3), 7.0 if communicator.rank == source else -1.0)
        communicator.broadcast(target, source)
    return [target]


KINDS = ["operation", "shape", "type", "source", "end", "owners", "keys", "order"]


@law(world=st.integers(2, 4), odd=st.integers(0, 3), kind=st.sampled_from(KINDS), schedule=schedules())
def test_s6_ranks_that_disagree_get_an_error_and_no_data(run, world, odd, kind, schedule):
    odd %= world
    made = {}

    def program(communicator):
        communicator.barrier()
        made[communicator.rank] = []
        try:
            made[communicator.rank] = _deviant(kind, communicator, odd)
            communicator.barrier()
        finally:
            communicator.note("after")
        return "went on"

    outcome = run(world, program, schedule)
    assert outcome.results == {}
    kinds = {rank: type(error) for rank, error in outcome.errors.items()}
    assert set(kinds) == set(range(world))
    assert ProtocolError in kinds.values()
    assert set(kinds.values()) <= {ProtocolError, CommAborted}
    assert all(error.culprit == outcome.abort.culprit for error in outcome.errors.values() if hasattr(error, "culprit"))
    assert f"rank {odd}" in outcome.abort.reason
    for tensors in made.values():
        assert all(set(tensor.reshape(-1).tolist()) <= {-1.0} for tensor in tensors)


@law(simulate, kind=st.sampled_from(KINDS), odd=st.integers(0, 3), schedule=schedules())
def test_s6_of_four_ranks_the_odd_one_out_is_to_blame(run, kind, odd, schedule):
    """It comes last, so that the other three headers are known; whoever finds out, it is the culprit."""

    def program(communicator):
        if communicator.rank == odd:
            communicator._transport.spend(1.0)
        _deviant(kind, communicator, odd)
        communicator.barrier()

    outcome = run(4, program, schedule)
    assert outcome.abort.culprit == odd
    with pytest.raises(ProtocolError, match=r"ranks disagree: rank . calls .*, (rank .|another rank) calls "):
        outcome.values()


@law(data=st.data(), world=st.integers(1, 6), schedule=schedules(), checksums=st.booleans())
def test_s7_every_key_arrives_once_from_its_owner(run, data, world, schedule, checksums):
    """Any owners: ranks with none, one with all, more ranks than keys; keys of any kind that can be sorted."""
    keys = data.draw(st.sampled_from([list(range(5)), ["b", "a"], [(1, "x"), (0, "y"), (1, "a")], []]))
    owner = {key: data.draw(st.integers(0, world - 1)) for key in keys}
    payloads = {key: data.draw(PAYLOADS) for key in keys}

    def program(communicator):
        out = {key: payloads[key].blank() for key in reversed(keys)}
        mine = {key: payloads[key].make(key, "of", owner[key]) for key in keys if owner[key] == communicator.rank}
        communicator.all_gather_into(out, mine, owner)
        return {key: bits(tensor) for key, tensor in out.items()}

    for got in clean(run(world, program, schedule, checksums=checksums)):
        assert got == {key: bits(payloads[key].make(key, "of", owner[key])) for key in keys}


@pytest.mark.parametrize("wrong", ["missing", "foreign", "shape", "out", "unknown"])
def test_s7_keys_that_do_not_fit_are_refused_before_anything_is_sent(wrong):
    def program(communicator):
        owner = {0: 0, 1: 1}
        out = {key: torch.full((2,), -1.0) for key in owner}
        mine = {communicator.rank: torch.ones(2)}
        if communicator.rank == 1:
            changed = {
                "missing": ({}, out),
                "foreign": ({0: torch.ones(2), 1: torch.ones(2)}, out),
                "shape": ({1: torch.ones(3)}, out),
                "out": (mine, {0: out[0]}),
                "unknown": ({1: torch.ones(2), "new": torch.ones(2)}, out),
            }
            mine, out = changed[wrong]
        communicator.all_gather_into(out, mine, owner)

    outcome = simulate(2, program)
    assert isinstance(outcome.errors[1], ProtocolError)
    assert "do not fit what rank 1 owns or receives" in str(outcome.errors[1])
    assert isinstance(outcome.errors[0], CommAborted) and outcome.errors[0].culprit == 1
