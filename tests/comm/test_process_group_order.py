"""What gloo ranks do beside the laws: processes that live on, heartbeats, late bytes, slowness (I, F, W)."""

import os
import time

import pytest
import torch
from pool import values
from test_process_group import receive

from vitrail.comm.message_header import SIZE
from vitrail.comm.transport import Part
from vitrail.errors import CommAborted, CommError, CommTimeout

# ---------------------------------------------------------------------- order and isolation


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
        assert values(pool.run(3, receive))
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


def slow(communicator, seconds, steps, pause):
    for step in range(steps):
        communicator.note(f"step {step}")
        if communicator.rank == 1 and step == steps - 1:
            time.sleep(seconds)
        time.sleep(pause)
        communicator.barrier()
    return "same"


def test_w1_w3_slowness_below_the_timeout_changes_nothing_but_time(pool):
    """The whole takes longer than the timeout, and no wait does; on a busy machine, when all of it is slower."""
    for slower in (1, 4, 16):
        answers = pool.run(3, slow, 0.4 * slower, 10, 0.1 * slower, timeout=1.0 * slower)
        if not any(isinstance(answer.error, CommError) for answer in answers):
            break
    assert values(answers) == ["same"] * 3


def test_w2_a_timeout_names_the_slow_rank_and_where_it_is(pool):
    answers = pool.run(3, slow, 3.0, 3, 0.0, timeout=1.0)
    for rank in (0, 2):
        error = answers[rank].error
        assert isinstance(error, CommError) and "rank 1" in str(error)
        assert not isinstance(error, CommAborted) or error.culprit == 1
    assert any(isinstance(answers[rank].error, CommTimeout) for rank in (0, 2))
    assert any("rank 1 is behind, last seen step 2" in str(answer.error) for answer in answers)
