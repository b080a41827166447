"""Real failures of real processes: everybody ends soon, the culprit is named, nothing is left (F1, F2, F4, F6)."""

import functools
import multiprocessing
import os
import pickle
import time

import pytest

from inject_failures import LIMIT_S, STEPS, TIMEOUT_S, Failure, run_gloo, steps
from vitrail.comm import Gloo, Nccl
from vitrail.comm.environment import RankEnvironment
from vitrail.comm.process_group_spawn import portable, run_spawned
from vitrail.errors import CommAborted, CommError, CommTimeout

os.environ.setdefault("OMP_NUM_THREADS", "1")
SLACK_S = 1.0  # of a loaded machine


@pytest.fixture(scope="module", autouse=True)
def preloaded():
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch.distributed", "vitrail.comm.process_group"]
    )


EXPECTED = {
    "kill": (CommAborted, "rank 1 ended the run: it was ended by SIGKILL.*last seen at step 4"),
    "leave": (CommAborted, "rank 1 ended the run: it ended with exit code 3, last seen at step 4"),
    "raise": (ValueError, "injected at step 4"),
    "stop": (CommTimeout, "rank 1 is behind, last seen step 4"),
    "slow": (CommTimeout, "rank 1 is behind, last seen step 4"),
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: f"by-{kind}")  # a word "slow" alone is a marker
def test_f1_f2_w2_a_failing_rank_ends_all_and_is_named(tmp_path, kind):
    found = run_gloo(3, Failure(kind, 1, 4, str(tmp_path / "mark")))
    error, text = EXPECTED[kind]
    assert found.named
    with pytest.raises(error, match=text):
        raise found.error
    assert found.seconds < LIMIT_S[kind] + SLACK_S


def test_f1_f6_the_same_in_spawned_processes(tmp_path):
    found = run_gloo(2, Failure("raise", 0, 1, str(tmp_path / "mark")), method="spawn")
    assert isinstance(found.error, ValueError)
    assert any("in fail" in note for note in found.error.__notes__)  # the traceback of its rank
    assert found.seconds < LIMIT_S["raise"] + SLACK_S


def test_nothing_fails_if_nothing_does():
    program = functools.partial(steps, failure=Failure("none", -1, -1))
    assert run_spawned(Gloo(timeout=20.0, checksums=True), 2, program, "run", "forkserver") == [STEPS - 1] * 2


def both_raise(communicator):
    communicator.note("the end")
    raise ValueError(f"rank {communicator.rank}")


def test_f4_two_failures_end_the_run_once():
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"rank [012]"):
        run_spawned(Gloo(timeout=20.0), 3, both_raise, "run", "forkserver")
    assert time.monotonic() - begin < 15


def cannot_be_sent(communicator):
    return lambda: None


def test_a_result_that_cannot_be_sent_is_an_error_not_a_hang():
    with pytest.raises(
        (AttributeError, TypeError, pickle.PicklingError, RuntimeError), match=r"(?i)pickle|lambda|local"
    ):
        run_spawned(Gloo(timeout=5.0), 2, cannot_be_sent, "run", "forkserver")


class OddError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def test_an_error_that_does_not_survive_pickling_is_sent_as_text():
    sent = portable(OddError(1, 2))
    assert isinstance(pickle.loads(pickle.dumps(sent)), RuntimeError)
    assert str(sent) == "OddError: 1 2"
    assert portable(CommAborted(3, "because")) == (3, "because")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("vitrail.comm.process_group.START_S", 1.0)


def test_a_store_that_is_not_there_is_named(impatient):
    environment = RankEnvironment(0, 2, 0, "127.0.0.1", 9, store_is_hosted=True)
    with pytest.raises(CommError, match=r"127.0.0.1:9 did not answer within 1 s"):
        Gloo(timeout=1.0).join(environment)


def test_a_rank_that_never_comes_is_named(impatient):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(CommTimeout, match=r"rank\(s\) 1, 2 did not come within 1 s"):
        Gloo(timeout=1.0).join(RankEnvironment(0, 3, 0, "127.0.0.1", port))


def test_nccl_refuses_where_there_is_no_device():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(
        CommError, match=r"needs a CUDA device for each rank: local rank 1 has none, torch sees 0.*gloo"
    ):
        Nccl(timeout=TIMEOUT_S).run(2, both_raise)
    with pytest.raises(CommError, match="local rank 0 has none"):
        Nccl().join(RankEnvironment(0, 1, 0, "127.0.0.1", 9))
