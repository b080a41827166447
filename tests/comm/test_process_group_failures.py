"""Real failures of real processes: everybody ends soon, the culprit is named, nothing is left (F1, F2, F4, F6)."""

import functools
import multiprocessing
import os
import pickle
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from failing_program import STEPS, Failure, run_gloo, steps

from vitrail.comm import Gloo, Nccl
from vitrail.comm.backends.process_group_spawn import portable, run_spawned
from vitrail.comm.backends.store_wire import keeper_of
from vitrail.comm.environment import RankEnvironment, from_environment
from vitrail.errors import CommAborted, CommError, CommTimeout

os.environ.setdefault("OMP_NUM_THREADS", "1")
TIMEOUT_S = 4.0  # of one wait


@pytest.fixture(scope="module", autouse=True)
def preloaded():
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch.distributed", "vitrail.comm.backends.process_group"]
    )


EXPECTED = {
    "kill": (CommAborted, "rank 1 ended the run: it was ended by SIGKILL.*last seen at step 4"),
    "leave": (CommAborted, "rank 1 ended the run: it ended with exit code 3, last seen at step 4"),
    "raise": (ValueError, "injected at step 4"),
    "stop": ((CommAborted, CommTimeout), "rank 1 .*(was stopped|is behind).*last seen (at )?step 4"),
    "slow": (CommTimeout, "rank 1 is behind, last seen step 4"),
}


@pytest.mark.parametrize("kind", EXPECTED, ids=lambda kind: f"by-{kind}")  # a word "slow" alone is a marker
def test_f1_f2_w2_a_failing_rank_ends_all_and_is_named(kind):
    """A rank that is slow sleeps for longer than the test may take."""
    found = run_gloo(3, Failure(kind, 1, 4), TIMEOUT_S)
    error, text = EXPECTED[kind]
    assert getattr(found, "culprit", 1) == 1
    with pytest.raises(error, match=text):
        raise found


def test_f1_f6_the_same_in_spawned_processes():
    found = run_gloo(2, Failure("raise", 0, 1), TIMEOUT_S, method="spawn")
    assert isinstance(found, ValueError)
    assert any("in fail" in note for note in found.__notes__)  # the traceback of its rank


def test_nothing_fails_if_nothing_does():
    program = functools.partial(steps, failure=Failure("none", -1, -1))
    assert run_spawned(Gloo(timeout=20.0, checksums=True), 2, program, "run", "forkserver") == [STEPS - 1] * 2


def both_raise(communicator):
    communicator.note("the end")
    raise ValueError(f"rank {communicator.rank}")


def test_f4_two_failures_end_the_run_once():
    with pytest.raises(ValueError, match=r"rank [012]"):
        run_spawned(Gloo(timeout=20.0), 3, both_raise, "run", "forkserver")


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
    monkeypatch.setattr("vitrail.comm.backends.process_group.START_S", 1.0)


def test_a_store_that_is_not_there_is_named(impatient):
    environment = RankEnvironment(0, 2, 0, "127.0.0.1", 9, store_is_hosted=True)
    with pytest.raises(CommError, match=r"127.0.0.1:9 did not answer within 1 s"):
        Gloo(timeout=1.0).join(environment)


def test_a_rank_that_never_comes_is_named(impatient):
    with pytest.raises(CommTimeout, match=r"rank\(s\) 1, 2 did not come within 1 s"):
        Gloo(timeout=1.0).join(RankEnvironment(0, 3, 0, "127.0.0.1", free_port()))


def slurm(job, rank, port):
    known = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2"}
    return from_environment(known | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_slurm_tasks_that_srun_did_not_start_are_said_within_the_timeout():
    with pytest.raises(CommTimeout, match=r"rank\(s\) 1 did not come within 0.5 s; .* 2 tasks: write srun before"):
        Gloo(timeout=0.5).join(slurm("7", 0, free_port()))


def test_two_jobs_that_meet_at_one_port_name_each_other_and_the_remedy(monkeypatch):
    monkeypatch.setattr("vitrail.comm.backends.key_store.STRANGE_S", 0.05)
    for patience in (4.0, 16.0, 64.0):  # on a busy machine the others may come when the first has given up
        first, *others = meeting_of_two_jobs(free_port(), patience)
        if "came to port" in str(first):
            break
    for error in others:
        assert isinstance(error, CommError)
        assert re.search(r"kept by SLURM job 7, step 0, process.*its own with MASTER_PORT", str(error)), error
    assert isinstance(first, CommTimeout)
    assert re.search(r"SLURM job 8, step 0, process .* came to port .*: set MASTER_PORT", str(first)), first


def meeting_of_two_jobs(port, patience):
    """The error of a task of job 7 that waits so many seconds for its other one, and of two tasks of job 8."""
    with ThreadPoolExecutor() as threads:
        first = threads.submit(Gloo(timeout=patience).join, slurm("7", 0, port))
        while "job 7" not in keeper_of("127.0.0.1", port) and not first.done():
            time.sleep(0.02)
        others = [threads.submit(Gloo(timeout=patience).join, slurm("8", rank, port)) for rank in (0, 1)]
        return [joined.exception() for joined in (first, *others)]


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
