"""Order, isolation, completion and time on real gloo ranks (O, I, C, W, L)."""

import os
import time

import pytest
import torch
from gloo_laws import WORLDS, law
from hypothesis import strategies as st
from payloads import Payload
from pool import values
from test_process_group import integrity, lagging

from vitrail.comm.header import SIZE
from vitrail.comm.transport import Part
from vitrail.errors import CommAborted, CommError, CommTimeout

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
    limit = time.monotonic() + 60
    while not works[0].is_completed():
        assert time.monotonic() < limit
        time.sleep(0.001)
    works[0].wait(timeout=1e-9)  # what is completed is not waited for
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
