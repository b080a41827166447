"""The laws of communication on real gloo ranks (S, B, C, O, I, W, L)."""

import functools
import os
import time

import pool as pools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from payloads import PAYLOADS, Payload, bits, spoil
from pool import values
from programs import Player, outcome_of, sized_programs

from vitrail.comm.header import SIZE
from vitrail.comm.transport import Part
from vitrail.errors import CommAborted, CommError, CommTimeout, ProtocolError, StaleVersion

PROFILE = os.environ.get("VITRAIL_PROFILE", "fast")
EXAMPLES = {"fast": 12, "ci": 40, "long": 500}[PROFILE]
WORLDS = st.sampled_from([2, 3])


@pytest.fixture(scope="module")
def pool():
    made = pools.Pool(3)
    yield made
    made.close()


def law(**drawn):
    """Make ``f(pool, **drawn)`` a test of tens of examples."""

    def decorate(function):
        def test(pool):
            def example(**drawn_values):
                function(pool, **drawn_values)

            functools.update_wrapper(example, function, assigned=("__name__", "__qualname__", "__module__"))
            del example.__wrapped__
            settings(max_examples=EXAMPLES)(given(**drawn)(example))()

        test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
        return test

    return decorate


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


def lead(communicator, lag):
    """The source publishes as fast as it may, the reader after a while; how far ahead the source came."""
    channel = communicator.channel("c", src=0, shape=(2,), dtype=torch.float32, max_staleness=lag)
    begin, times = time.monotonic(), []
    if communicator.rank == 1:
        time.sleep(0.4)
    for step in range(lag + 5):
        channel.publish(step, torch.full((2,), float(step)) if communicator.rank == 0 else None)
        times.append(time.monotonic() - begin)
    return sum(moment < 0.3 for moment in times)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_b3_a_source_is_never_further_ahead_than_its_slots(pool, lag):
    assert values(pool.run(2, lead, lag))[0] == lag + 2


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


# ---------------------------------------------------------------------- order and isolation


def any_order(communicator, order):
    """Two splits and two channels of equal shape, used in an order of its own on every rank."""
    splits = [communicator.split(name) for name in "ab"]
    channels = [communicator.channel(name, src=0, shape=(2,), dtype=torch.float32) for name in "cd"]
    tensors = [torch.full((3,), float(index) if communicator.rank == 0 else -1.0) for index in range(2)]
    works = {}
    for index in order[communicator.rank]:
        works[index] = splits[index].broadcast(tensors[index], 0, async_op=True)
        channels[index].publish(0, torch.full((2,), 10.0 + index) if communicator.rank == 0 else None)
    for index in reversed(order[communicator.rank]):
        works[index].wait()
    return [tensor.tolist() for tensor in tensors], [channel.fetch(0).tolist() for channel in channels]


@law(world=WORLDS, turns=st.lists(st.booleans(), min_size=3, max_size=3))
def test_o4_i1_i2_splits_and_channels_never_cross(pool, world, turns):
    order = [[1, 0] if turned else [0, 1] for turned in turns]
    told = ([[0.0] * 3, [1.0] * 3], [[10.0] * 2, [11.0] * 2])
    assert values(pool.run(world, any_order, order)) == [told] * world


def unread(communicator, number):
    channel = communicator.channel("c", src=0, shape=(), dtype=torch.float32, max_staleness=3)
    for step in range(3):
        channel.publish(step, torch.tensor(100.0 * number + step) if communicator.rank == 0 else None)
    return float(channel.fetch(1))


def test_i2_what_one_run_leaves_unread_the_next_never_sees(pool):
    for number in range(4):
        assert values(pool.run(3, unread, number)) == [100.0 * number + 1] * 3


def fails(communicator):
    communicator.broadcast(torch.zeros(3), 0, async_op=True)
    if communicator.rank == 1:
        raise ValueError("here")
    communicator.barrier()
    communicator.barrier()


def test_i3_after_an_aborted_run_the_same_process_starts_clean(pool):
    pids = values(pool.run(3, process))
    for _ in range(3):
        answers = pool.run(3, fails)
        assert isinstance(answers[1].error, ValueError)
        assert {answers[rank].error.culprit for rank in (0, 2)} == {1}
        assert values(pool.run(3, integrity, Payload(), 0))
    assert values(pool.run(3, process)) == pids


def process(communicator):
    return os.getpid()


def leaves(communicator):
    for step in range(4):
        communicator.note(f"step {step}")
        if communicator.rank == 1 and step == 2:
            os._exit(9)
        communicator.barrier()


def test_f1_if_nobody_saw_who_died_the_rank_without_a_heartbeat_is_named(pool):
    """As under a launcher that does not tell: here the parent knows, and keeps silent."""
    answers = pool.run(3, leaves)
    assert answers[1].died
    for rank in (0, 2):
        error = answers[rank].error
        assert isinstance(error, CommAborted) and error.culprit == 1
        assert "its connection broke, last seen at step 2" in error.reason
    assert len(set(values(pool.run(3, process)))) == 3


def late(communicator):
    """Rank 1 posts after the others have given up; its bytes must not reach their tensors."""
    tensor = torch.ones(1000)
    if communicator.rank == 1:
        time.sleep(0.7)
        mine = {0: torch.zeros(4000, dtype=torch.uint8)}  # past the communicator, which knows of the abort
        communicator._transport.post("main", 0, bytes(SIZE), [Part(1, 4000)], mine, "all")
        time.sleep(0.5)
        return True
    work = communicator.broadcast(tensor, 1, async_op=True)
    with pytest.raises(CommError, match="rank 1") as caught:
        work.wait(0.3)
    time.sleep(1.0)
    arrived = bool(communicator._transport._flying["main"][0].is_done())
    return bool((tensor == 1).all()), type(caught.value).__name__, arrived


def lateness(communicator):
    """The run is aborted all the same; what was seen comes as text of the error."""
    seen = late(communicator)
    raise ValueError(repr(seen))


def test_i4_what_comes_after_a_timeout_changes_no_tensor(pool):
    told = [str(answer.error) for answer in pool.run(3, lateness)]
    assert told[1] == "True"
    for rank in (0, 2):  # the bytes did come, into a slot that nobody reads
        assert told[rank] in ("(True, 'CommTimeout', True)", "(True, 'CommAborted', True)")
    assert any("CommTimeout" in text for text in told)


# ---------------------------------------------------------------------- completion and time


def big_and_small(communicator, order):
    """A big message, a small one and a channel at once; waited for in any order, some twice, one never."""
    src = communicator.rank == 0
    sizes = [400_000, 1, 70_000, 0]
    tensors = [torch.full((size,), float(index + 1) if src else 0.0) for index, size in enumerate(sizes)]
    works = [communicator.broadcast(tensor, 0, async_op=True) for tensor in tensors]
    for index in order:
        works[index].wait()
        assert works[index].is_completed() and works[index].exception() is None
        assert bool((tensors[index] == index + 1).all())
    begin = time.monotonic()
    while not works[0].is_completed():
        assert time.monotonic() - begin < 10
        time.sleep(0.001)
    seen = time.monotonic()
    works[0].wait()
    assert time.monotonic() - seen < 0.1
    leaked = communicator.close()
    return [float(tensor.sum()) for tensor in tensors], len(leaked)


@law(world=WORLDS, order=st.lists(st.integers(0, 3), max_size=6))
def test_c1_c2_c3_works_may_be_waited_for_in_any_order(pool, world, order):
    told = [400_000.0, 2.0, 210_000.0, 0.0]
    for sums, leaked in values(pool.run(world, big_and_small, order)):
        assert sums == told
        assert leaked == len({1, 2, 3} - set(order))


def slow(communicator, seconds, steps, pause):
    for step in range(steps):
        communicator.note(f"step {step}")
        if communicator.rank == 1 and step == steps - 1:
            time.sleep(seconds)
        time.sleep(pause)
        communicator.barrier()
    return "same"


def test_w1_w3_slowness_below_the_timeout_changes_nothing_but_time(pool):
    assert values(pool.run(3, slow, 0.5, 12, 0.1, timeout=1.0)) == ["same"] * 3


def test_w2_a_timeout_names_the_slow_rank_and_where_it_is(pool):
    answers = pool.run(3, slow, 3.0, 3, 0.0, timeout=1.0)
    for rank in (0, 2):
        error = answers[rank].error
        assert isinstance(error, CommError) and "rank 1" in str(error)
        assert not isinstance(error, CommAborted) or error.culprit == 1
    assert any(isinstance(answers[rank].error, CommTimeout) for rank in (0, 2))
    assert any("rank 1 is behind, last seen step 2" in str(answer.error) for answer in answers)


def test_l5_one_rank_never_blocks(pool):
    assert values(pool.run(1, integrity, Payload(shape=(2, 2)), 0))[0][3] is None
    assert values(pool.run(1, lagging, 1, 6)) == [[0, 0, 1, 2, 3, 4]]
