"""``vitrail sample --ranks``: the same file on any number of processes, one voice, and an end to every failure."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from command_line import start, wait_for
from processes import MARK, listeners, ranks
from vitrail.comm import Gloo
from vitrail.comm.backends.key_store import StoreClient
from vitrail.comm.environment import RankEnvironment
from vitrail.errors import CommError

SHORT = ["sample", "a fox", "--steps", 3, "--size", 136, "--row-batch", 2, "--method", "asg", "--seed", 5]
LONG = ["sample", "a fox", "--steps", 900, "--size", 256, "--row-batch", 1, "--method", "multidiffusion"]


def finish(process, timeout=600):
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
    "words",
    [
        ["--ranks", 2],
        *(
            pytest.param(words, marks=pytest.mark.thorough)
            for words in (["--ranks", 3, "--comm", "gloo"], ["--ranks", 2, "--comm", "in-process"])
        ),
    ],
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


@pytest.mark.thorough
def test_under_torchrun_it_joins_the_group_and_only_this_host_can_reach_it(tmp_path, folder, alone):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vitrail"]
    command += [*map(str, SHORT), "--model", str(folder), "-o", "fox.png"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: tmp_path.name}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    seen = set()
    while process.poll() is None:  # what it says fits into the pipes
        seen |= set(listeners(ranks(tmp_path.name).values()))
        time.sleep(0.02)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert (tmp_path / "fox.png").read_bytes() == alone
    assert out.count("loading model") == 1
    assert seen and all(each.is_loopback for each in seen), seen


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


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("rank", "how", "code"),
    [
        (1, "SIGKILL", 1),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in ((0, "SIGKILL", 1), (1, "SIGTERM", 1), (1, "SIGINT", 130))
        ),
    ],
)
def test_f6_a_killed_rank_ends_all_with_its_name_and_leaves_no_file(tmp_path, folder, rank, how, code):
    process = start(tmp_path, *LONG, "--ranks", 2, "--model", folder, "-o", "fox.png")
    wait_for(process, "step 2/900")
    ranked = children(process)
    assert set(ranked) == {0, 1}
    os.kill(ranked[rank], getattr(signal, how))
    found, _, err = finish(process)  # long before a timeout of the ranks, which would name another reason
    assert found == code and how in err and "at step " in err
    assert err.startswith(f"vitrail: rank {rank} ended the run: ") and len(err.splitlines()) == 1  # told once
    assert not any(map(alive, ranked.values()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
@pytest.mark.parametrize("begun", ["startup", "step 2/900"])
def test_w2_a_stopped_rank_is_named_after_the_timeout(tmp_path, folder, begun):
    process = start(tmp_path, *LONG, "--ranks", 2, "--timeout", 3, "--model", folder, "-o", "fox.png")
    if begun == "startup":
        while len(children(process)) < 2:
            time.sleep(0.01)
    else:
        wait_for(process, begun)
    ranked = children(process)
    begin = time.monotonic()
    os.kill(ranked[1], signal.SIGSTOP)
    code, _, err = finish(process)
    assert time.monotonic() - begin >= 3  # not before
    assert code == 1 and err.startswith("vitrail: rank 1 ended the run: ") and "3 s" in err
    assert len(err.splitlines()) == 1  # told once
    assert not any(map(alive, ranked.values()))
    assert list(tmp_path.iterdir()) == []


PROBE = """
import atexit, os, signal
from vitrail import hookimpl
rank = os.environ.get("RANK")
class Probe:
    @hookimpl
    def vitrail_run_start(self):
        open(f"probed-{rank}", "w").close()
if rank == "1":
    atexit.register(os.kill, os.getpid(), signal.SIGKILL)
"""
INTRUDER = """
import os
open(f"intruded-{os.environ.get('RANK')}", "w").close()
"""


@pytest.mark.thorough
def test_ranks_import_nothing_from_here_but_the_plugin_and_may_die_when_all_is_done(tmp_path, folder, alone):
    """A file named like a library and what looks like an installed plugin lie in the current folder."""
    (tmp_path / "fractions.py").write_text(INTRUDER)
    (tmp_path / "intruder.py").write_text(INTRUDER)
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "intruder-1.0.dist-info").mkdir()
    (tmp_path / "intruder-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: intruder\nVersion: 1.0\n"
    )
    (tmp_path / "intruder-1.0.dist-info" / "entry_points.txt").write_text("[vitrail.plugins]\nintruder = intruder\n")
    words = [*SHORT, "--ranks", 2, "--plugin", "probe:Probe", "--model", folder, "-o", "fox.png"]
    environment = {name: value for name, value in os.environ.items() if name != "VITRAIL_DISABLE_PLUGINS"}
    command = [sys.executable, "-P", "-m", "vitrail", *map(str, words)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.glob("probed-*")} == {"probed-0", "probed-1"}
    assert list(tmp_path.glob("intruded-*")) == []
    assert done.stderr.startswith("vitrail: rank 1, when all was done: it was ended by SIGKILL")
    assert len(done.stderr.splitlines()) == 1
    assert Image.open(tmp_path / "fox.png").tobytes() == Image.open(io.BytesIO(alone)).tobytes()


@pytest.mark.thorough
def test_ctrl_c_stops_all_ranks_at_one_step_whatever_strangers_try(tmp_path, folder):
    process = start(tmp_path, *LONG, "--ranks", 2, "--model", folder, "-o", "fox.png")
    wait_for(process, "step 2/900")
    ranked = children(process)
    found = listeners([process.pid, *ranked.values()])
    assert found and all(each.is_loopback for each in found), found
    for each in found:  # the run's store and the sockets of its groups
        with socket.create_connection(("127.0.0.1", each.port)) as stranger:
            stranger.sendall(b"abort" * 10)
    port = next(each.port for each in found if each.pid == process.pid)
    with pytest.raises(CommError, match=r"kept by ranks of vitrail --ranks.*MASTER_PORT"):  # to read, to abort
        StoreClient("127.0.0.1", port, "guess", "a stranger", 10.0)
    with pytest.raises(CommError, match="not by this run"):  # to join
        Gloo(timeout=10.0).join(RankEnvironment(1, 2, 1, "127.0.0.1", port, store_is_hosted=True))
    for pid in ranked.values():  # which others can read
        assert b"secret" not in Path(f"/proc/{pid}/cmdline").read_bytes().lower()
    wait_for(process, "step ")  # it goes on
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, err) == (130, ""), out + err
    assert "fox.partial.png: what was predicted after " in out
    assert not any(map(alive, ranked.values()))
    assert [path.name for path in tmp_path.iterdir()] == ["fox.partial.png"]


@pytest.mark.thorough
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
