"""The parent of ranks: exit codes, one readable message, and no process left."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vitrail.comm.backends.launch import launch, rank_variables

PREAMBLE = """
import json, os, signal, sys, time
LONG = 3600  # nobody waits so long
rank = int(os.environ["RANK"])
def mark():
    with open(sys.argv[1] + f"/pid-{rank}", "w") as file:
        file.write(str(os.getpid()))
"""
JOINED = """
from vitrail.comm import Gloo
from vitrail.comm.environment import from_environment
from vitrail.comm.outcome import guarded
def rank_main(communicator):
    for step in range(10):
        communicator.note(f"step {step}")
        if step == 4 and rank == 1:
            befall(communicator)
        communicator.barrier()
    if rank == 0:
        print("sampled on", communicator.world_size, flush=True)
communicator = Gloo(timeout=float(sys.argv[2])).join(from_environment())
mark()
guarded(communicator, rank_main)
"""
RUN = """
import sys
from vitrail.comm.backends.launch import launch
sys.exit(launch(sys.argv[2:], int(sys.argv[1]), grace=1.0))
"""

PATIENCE_S = 200.0  # of a test, however busy the machine is


def script(tmp_path, body, joined=False):
    path = tmp_path / "program.py"
    path.write_text(PREAMBLE + textwrap.dedent(body) + (JOINED if joined else ""))
    return [sys.executable, str(path), str(tmp_path)]


def is_gone(pid):
    """Whether no process has this number, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def pids(tmp_path, count, patience=PATIENCE_S):
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        found = [path.read_text() for path in tmp_path.glob("pid-*")]
        if len(found) == count and all(found):
            return [int(each) for each in found]
        time.sleep(0.02)
    raise AssertionError(f"only {found} of {count} ranks started")


def wait_until(happened, patience=PATIENCE_S):
    limit = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.02)


# ---------------------------------------------------------------------- ranks that never join


def test_all_is_well_and_only_rank_0_is_heard(tmp_path, capfd):
    command = script(tmp_path, "print('I am', rank, flush=True)")
    assert launch(command, 2) == 0
    out, err = capfd.readouterr()
    assert out.split() == ["I", "am", "0"]
    assert err == ""


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("sys.exit(0 if rank != 1 else 7)", 1, "vitrail: rank 1 ended the run: it ended with exit code 7\n"),
        ("rank == 1 and os.kill(os.getpid(), 9)", 1, "it was ended by SIGKILL (perhaps because memory ran out)\n"),
        ("rank == 1 and 1 / 0\ntime.sleep(LONG)", 1, "ZeroDivisionError: division by zero"),
        ("sys.exit(2)", 2, ""),
        ("rank == 1 and sys.exit(2)\ntime.sleep(LONG)", 2, "rank 1 ended the run: it ended with exit code 2\n"),
        ("rank == 1 and sys.exit(130)\ntime.sleep(LONG)", 130, "rank 1 ended the run: it was interrupted by SIGINT\n"),
        ("rank == 0 and sys.exit(1)\ntime.sleep(LONG)", 1, ""),
        ("rank == 0 and sys.exit(3)\ntime.sleep(LONG)", 1, "rank 0 ended the run: it ended with exit code 3\n"),
        ("rank == 0 and sys.exit(130)\ntime.sleep(LONG)", 130, ""),
    ],
    ids=["exit", "killed", "raised", "usage", "usage-of-one", "interrupted-one", "spoken", "untold", "interrupted"],
)  # fmt: skip
def test_f6_the_exit_code_and_the_message_tell_what_happened(tmp_path, capfd, body, code, told):
    assert launch(script(tmp_path, "mark()\n" + body), 3, grace=0.5) == code
    err = capfd.readouterr().err
    assert told in err and bool(err) == bool(told)
    assert err.count("ended the run") == (1 if told else 0)
    assert all(map(is_gone, pids(tmp_path, 3)))


def test_who_hears_neither_word_nor_sigterm_is_killed(tmp_path, capfd):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nmark()\nrank == 1 and sys.exit(3)\ntime.sleep(LONG)"
    assert launch(script(tmp_path, body), 2, grace=0.3) == 1
    assert "rank 1 ended the run: it ended with exit code 3" in capfd.readouterr().err
    assert all(map(is_gone, pids(tmp_path, 2)))


def started(tmp_path, body, count, *arguments, joined=False):
    command = [sys.executable, "-c", RUN, str(count), *script(tmp_path, body, joined), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WAITS = """
from vitrail.comm.lifeline import hold
def heard(number, frame):
    open(sys.argv[1] + f"/heard-{rank}", "a").write("x")
    if rank == 0 and len(sys.argv) < 3:
        sys.exit(130)
signal.signal(signal.SIGINT, heard)
hold()
mark()
while True:
    time.sleep(0.05)
"""


def test_ctrl_c_is_passed_on_to_rank_0_alone(tmp_path):
    parent = started(tmp_path, WAITS, 2)
    ranks = pids(tmp_path, 2)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == 130 and err == ""
    assert (tmp_path / "heard-0").read_text() == "x" and not (tmp_path / "heard-1").exists()
    assert all(map(is_gone, ranks))


def test_ctrl_c_before_rank_0_listens_ends_all_with_one_message(tmp_path):
    """A rank that is only starting would answer it with a traceback."""
    parent = started(tmp_path, "mark()\ntime.sleep(LONG)", 2)
    ranks = pids(tmp_path, 2)
    parent.send_signal(signal.SIGINT)
    _, err = parent.communicate(timeout=PATIENCE_S)
    assert (parent.returncode, err) == (130, "vitrail: stopped at once by SIGINT; files that were complete are kept\n")
    assert all(map(is_gone, ranks))


@pytest.mark.parametrize(
    ("signals", "code"), [pytest.param("INT INT", 130, marks=pytest.mark.slow), ("TERM", 143)], ids=["int", "term"]
)
def test_a_second_ctrl_c_or_sigterm_ends_all_ranks(tmp_path, signals, code):
    parent = started(tmp_path, WAITS, 2, "stay")
    ranks = pids(tmp_path, 2)
    for number, name in enumerate(signals.split()):
        if number:  # two of a kind that are not yet heard are one
            wait_until((tmp_path / "heard-0").exists)
        parent.send_signal(getattr(signal, f"SIG{name}"))
    parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == code
    assert all(map(is_gone, ranks))


# ---------------------------------------------------------------------- ranks that talk

AGAIN = """
import torch
from vitrail.comm import Gloo
from vitrail.comm.environment import from_environment
from vitrail.comm.outcome import guarded
from vitrail.errors import CommAborted
def run(program):
    communicator = Gloo(timeout=20).join(from_environment())
    try:
        return guarded(communicator, program)
    finally:
        communicator.close()
def good(communicator):
    tensor = torch.full((3,), float(communicator.rank))
    communicator.broadcast(tensor, 1)
    return tensor.tolist()
def bad(communicator):
    if communicator.rank == 0:
        raise ValueError("a bad day")
    communicator.barrier()
rank = from_environment().rank
print(run(good))
try:
    run(bad)
except (ValueError, CommAborted) as error:
    print(error)
print(run(good))
"""


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""], ids=["loopback", "named", "own-name"])
def test_i3_without_a_launcher_rank_0_keeps_the_store_for_several_runs(host):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    known = os.environ | {"MASTER_ADDR": host or socket.gethostname(), "MASTER_PORT": str(port), "SLURM_NTASKS": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", AGAIN],
            env=known | {"SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(ranks):
        out, err = process.communicate(timeout=90)
        told = "a bad day" if rank == 0 else "rank 0 ended the run: ValueError: a bad day"
        assert (process.returncode, out.splitlines()) == (0, ["[1.0, 1.0, 1.0]", told, "[1.0, 1.0, 1.0]"]), err


DIE = "os.kill(os.getpid(), signal.SIG{})"
FAILURES = {  # what befalls rank 1, and what is told
    "raised": ("raise ValueError('a bad day')", "ValueError: a bad day, last seen at step 4"),
    "killed": (DIE.format("KILL"), "it was ended by SIGKILL (perhaps because memory ran out), last seen at step 4"),
    "left": ("os._exit(5)", "it ended with exit code 5, last seen at step 4"),
    "stopped": (DIE.format("STOP"), "rank 1 is behind, last seen step 4"),
}


@pytest.mark.parametrize(
    ("what", "told"),
    [
        pytest.param(*expected, id=name, marks=[pytest.mark.slow] if name != "killed" else [])
        for name, expected in FAILURES.items()
    ],
)
def test_f1_a_rank_that_fails_ends_all_and_is_named(tmp_path, what, told):
    timeout = 40.0 if "STOP" in what else PATIENCE_S  # who is stopped is missed after a timeout, all others at once
    parent = started(tmp_path, f"def befall(c):\n    {what}", 2, str(timeout), joined=True)
    out, err = parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == 1 and out == ""
    ours = err[err.index("vitrail: ") :]
    assert told in ours and "rank 1 ended the run" in ours
    assert all(map(is_gone, pids(tmp_path, 2)))


def test_if_the_parent_is_killed_the_ranks_end(tmp_path):
    parent = started(tmp_path, "befall = lambda c: time.sleep(LONG)", 2, "3600", joined=True)
    ranks = pids(tmp_path, 2)
    parent.kill()
    parent.communicate()
    wait_until(lambda: all(map(is_orphan_gone, ranks)))


def is_orphan_gone(pid):
    """As a zombie that nobody but init can reap, it has ended, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_environment_of_a_rank(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    variables = rank_variables(1, 64, 1234)
    told = {name: variables[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert json.dumps(list(told.values())) == '["1", "1", "64", "127.0.0.1", "1234"]'
    assert "OMP_NUM_THREADS" not in variables and variables["OMP_WAIT_POLICY"] == "passive"
    assert "TORCHELASTIC_RUN_ID" not in variables
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    told = rank_variables(1, 64, 1234)
    assert (told["OMP_NUM_THREADS"], told["OMP_WAIT_POLICY"]) == ("3", "active")
