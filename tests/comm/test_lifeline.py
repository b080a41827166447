"""A rank ends with whoever started it, from its first line on, and whether or not it is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitrail.comm.lifeline import ALONE, DONE, Lifeline

PATIENCE_S = 100.0
LAUNCHER = """
import sys
from vitrail.comm.backends.launch import launch
sys.exit(launch([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], 2))
"""
RANK = """
import os, sys, time
from vitrail.comm.lifeline import hold
hold(lambda: open(f"cleaned-{os.environ['RANK']}", "w").close())
assert "torch" not in sys.modules and "VITRAIL_LIFELINE" not in os.environ
open(f"here-{os.environ['RANK']}-{os.getpid()}", "w").close()
time.sleep(3600)
"""


def wait_until(happened):
    limit = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < limit
        time.sleep(0.02)


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def ranks_here(folder, count=2):
    wait_until(lambda: len(list(folder.glob("here-*"))) == count)
    return [int(path.name.split("-")[2]) for path in sorted(folder.glob("here-*"))]


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
def test_ranks_end_and_clean_up_when_their_launcher_is_killed(tmp_path, is_stopped):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, RANK], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    ranks = ranks_here(tmp_path)
    if is_stopped:
        os.kill(ranks[1], signal.SIGSTOP)
        wait_until(lambda: state(ranks[1]) == "T")
    launcher.kill()
    _, err = launcher.communicate()
    wait_until(lambda: all(state(pid) == "Z" for pid in ranks))
    assert {path.name for path in tmp_path.glob("cleaned-*")} == {"cleaned-0", "cleaned-1"}
    assert err == "vitrail: the process that started the ranks is gone, so the ranks end, too\n"


def test_under_torchrun_a_rank_looks_at_its_parent(tmp_path):
    agent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    variables = {"RANK": "1", "TORCHELASTIC_RUN_ID": "x"}
    process = subprocess.Popen([sys.executable, "-c", agent, RANK], cwd=tmp_path, env=os.environ | variables)
    ranks = ranks_here(tmp_path, 1)
    process.kill()
    process.wait()
    wait_until(lambda: state(ranks[0]) == "Z")
    assert (tmp_path / "cleaned-1").exists()


@pytest.mark.skipif(b"python" in Path("/proc/1/cmdline").read_bytes(), reason="the first process is Python")
def test_under_torchrun_a_rank_ends_whose_parent_died_before_it_could_look(tmp_path):
    """A process that the first one adopts has lost its parent."""
    agent = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    late = "import os, time\nwhile os.getppid() != 1:\n    time.sleep(0.01)\n"
    variables = {"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    command = [sys.executable, "-c", agent, late + RANK]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
    assert "the process that started the ranks is gone" in done.stderr  # its end closes the pipe
    wait_until((tmp_path / "cleaned-0").exists)


def test_a_process_that_nobody_launched_is_held_by_nobody(tmp_path):
    body = RANK.replace("time.sleep(3600)", "").replace("os.environ['RANK']", "0")
    code = f"import threading\n{body}\nassert threading.active_count() == 1"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_launcher_hears_what_the_rank_says():
    line = Lifeline()
    assert not (line.is_here or line.is_alone or line.is_done)
    line.theirs.send(ALONE)
    assert line.is_alone and not line.is_done
    line.theirs.send(DONE)
    line.cut()
    assert line.is_alone and line.is_done  # heard before
    assert line.theirs.recv(1) == b"c"
    line.theirs.close()


def test_the_end_of_a_rank_is_no_word():
    line = Lifeline()
    line.theirs.close()
    assert not line.is_done
    line.cut()
