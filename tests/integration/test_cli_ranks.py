"""``vitrail sample --ranks``: the same file on any number of processes, one voice, and an end to every failure."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import start, wait_for

SHORT = ["sample", "a fox", "--steps", 3, "--size", 136, "--row-batch", 2, "--method", "asg", "--seed", 5]
LONG = ["sample", "a fox", "--steps", 900, "--size", 256, "--row-batch", 1, "--method", "multidiffusion"]


def finish(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def children(process):
    """Process ids of the ranks, by rank."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid:
                variables = (stat.parent / "environ").read_bytes().split(b"\0")
                found[int(next(v for v in variables if v.startswith(b"RANK="))[5:])] = int(stat.parent.name)
        except (OSError, StopIteration):
            continue
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """The file that one rank writes."""
    place = tmp_path_factory.mktemp("alone")
    code, out, err = finish(start(place, *SHORT, "--model", folder, "-o", "fox.png"))
    assert code == 0, out + err
    return (place / "fox.png").read_bytes()


@pytest.mark.parametrize(
    "words", [["--ranks", 2], ["--ranks", 3, "--comm", "gloo"], ["--ranks", 2, "--comm", "in-process"]]
)
def test_e1_every_kind_of_ranks_writes_the_same_file(tmp_path, folder, alone, words):
    code, out, err = finish(start(tmp_path, *SHORT, *words, "--model", folder, "-o", "fox.png", "--trace", "t.json"))
    assert (code, err) == (0, ""), out + err
    assert (tmp_path / "fox.png").read_bytes() == alone
    assert out.count("loading model") == 1 and f"{words[1]} ranks" in out
    assert re.search(r"exposed communication: .* on average", out)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == set(range(words[1]))
    assert {path.name for path in tmp_path.iterdir()} == {"fox.png", "t.json"}


def test_under_torchrun_it_joins_the_group(tmp_path, folder, alone):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vitrail"]
    command += [*map(str, SHORT), "--model", str(folder), "-o", "fox.png"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fox.png").read_bytes() == alone
    assert done.stdout.count("loading model") == 1


def test_ranks_that_the_launcher_did_not_start_are_not_made_up(tmp_path, folder):
    given = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for variables, words, told in (
        (given, ["--ranks", "4"], "--ranks 4, but the launcher started 2; leave --ranks out"),
        (given, ["--comm", "in-process"], "--comm in-process cannot join"),
        ({"RANK": "0"}, [], "WORLD_SIZE and MASTER_ADDR and MASTER_PORT is not set"),
    ):
        command = [sys.executable, "-m", "vitrail", *map(str, SHORT), *words, "--model", str(folder)]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True)
        assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("rank", "how"), [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGTERM)])
def test_f6_a_killed_rank_ends_all_with_its_name_and_leaves_no_file(tmp_path, folder, rank, how):
    process = start(tmp_path, *LONG, "--ranks", 2, "--model", folder, "-o", "fox.png")
    wait_for(process, "step 2/900")
    ranks = children(process)
    assert set(ranks) == {0, 1}
    os.kill(ranks[rank], how)
    code, _, err = finish(process)  # long before a timeout of the ranks, which would name another reason
    assert code == 1 and f"rank {rank}" in err and how.name in err and "at step " in err
    assert len(err.splitlines()) < 8 and "Traceback" not in err
    assert not any(map(alive, ranks.values()))
    assert list(tmp_path.iterdir()) == []


def test_w2_a_stopped_rank_is_named_after_the_timeout(tmp_path, folder):
    process = start(tmp_path, *LONG, "--ranks", 2, "--timeout", 2, "--model", folder, "-o", "fox.png")
    wait_for(process, "step 2/900")
    ranks = children(process)
    begin = time.monotonic()
    os.kill(ranks[1], signal.SIGSTOP)
    code, _, err = finish(process)
    assert time.monotonic() - begin >= 2  # not before
    assert code == 1 and "rank 1" in err and "Traceback" not in err
    assert not any(map(alive, ranks.values()))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_stops_all_ranks_at_one_step(tmp_path, folder):
    process = start(tmp_path, *LONG, "--ranks", 2, "--model", folder, "-o", "fox.png")
    wait_for(process, "step 2/900")
    ranks = children(process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, ""), out + err
    assert "fox.partial.png: what was predicted after " in out
    assert not any(map(alive, ranks.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["fox.partial.png"]


def test_f7_a_killed_run_goes_on_with_other_ranks_and_writes_the_same_file(tmp_path, folder):
    words = ["sample", "a fox", "--steps", 16, "--size", 192, "--row-batch", 2, "--method", "asg", "--model", folder]
    code, out, err = finish(start(tmp_path, *words, "-o", "whole.png"))
    assert code == 0, out + err
    words += ["-o", "fox.png", "--checkpoint", "run.ckpt", "--checkpoint-every", 1]
    process = start(tmp_path, *words, "--ranks", 2)
    wait_for(process, "step 2/16")
    while not (tmp_path / "run.ckpt").exists():
        time.sleep(0.01)
    os.kill(children(process)[1], signal.SIGKILL)
    assert finish(process)[0] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"whole.png", "run.ckpt"}
    code, out, err = finish(start(tmp_path, *words, "--ranks", 3))
    assert code == 0, out + err
    assert (tmp_path / "fox.png").read_bytes() == (tmp_path / "whole.png").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.png", "fox.png"}
