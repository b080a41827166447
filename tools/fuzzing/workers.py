"""Worker processes of the fuzzer: forks of this process, which has imported all that cases need.

A fork takes milliseconds, and changes of the process end with it. Memory is limited (RLIMIT_AS) and measured (the
child's peak above its start); time is limited by RLIMIT_CPU and by the parent.
"""

import contextlib
import gc
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fuzzing.cases import MEBIBYTES, SECONDS, Case, Outcome

KILO, MEBI = 2**10, 2**20
PATIENCE_S = 120.0  # wall time after which a case is killed
SPARE = 512  # MiB of address space beyond the limit of memory, since more is reserved than used
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VITRAIL_DISABLE_PLUGINS": "all"}


def warm_up() -> None:
    """Import the modules of all commands and load the demo model once, so that children need not."""
    os.environ.update(ENVIRONMENT)
    import torch

    torch.set_num_threads(1)
    import yaml  # noqa: F401

    from vitrail.backbones.loading import model_loader as loading
    from vitrail.backbones.memory import forecast as memory  # noqa: F401
    from vitrail.cli import report as reporting  # noqa: F401
    from vitrail.cli import run as experiments  # noqa: F401
    from vitrail.sampling import sampler  # noqa: F401

    for words in (["check", "e.toml"], ["sample", "a fox", "--config", "r.yaml", "--dry-run"]):
        _rehearse(words)
    _keep_loaded(loading)
    gc.collect()
    gc.freeze()  # otherwise a child's first collection copies all pages of its parent


def _keep_loaded(loading) -> None:
    """Replace ``load_pipeline`` by one that returns the preloaded demo pipeline at its first use in a child."""
    from vitrail.backbones import adapters as families
    from vitrail.backbones.loading.source import find_model
    from vitrail.sampling.discovery import registry

    plain, kept = loading.load_pipeline, {}

    def load_pipeline(source, device=None):
        key = (source.location, source.options, device or "cpu")
        return kept.pop(key) if key in kept else plain(source, device)

    source = find_model("demo", registry()).source
    kept[source.location, source.options, "cpu"] = plain(source)
    families.load_pipeline = load_pipeline


def _rehearse(words: list[str]) -> None:
    """Run a command in this process, so that its caches are present in every child."""
    import structlog

    from fuzzing.command_lines import FILES

    before, argv = Path.cwd(), sys.argv
    with tempfile.TemporaryDirectory(prefix="vitrail-fuzz-") as folder, contextlib.redirect_stdout(io.StringIO()):
        for name in ("e.toml", "r.yaml", "mine.toml"):
            (Path(folder) / name).write_bytes(FILES[name])
        os.chdir(folder)
        sys.argv = ["vitrail", *words]
        try:
            _answer()
        finally:
            os.chdir(before)
            sys.argv = argv
            structlog.reset_defaults()


def run(case: Case, limit_s: int = SECONDS, patience_s: float = PATIENCE_S, mebibytes: int = MEBIBYTES) -> Outcome:
    """Run a case in a child process and a folder of its own.

    Args:
        case: The case.
        limit_s: Limit of CPU time in seconds, which does not depend on other load.
        patience_s: Limit of wall time in seconds.
        mebibytes: Limit of memory in MiB.
    """
    with tempfile.TemporaryDirectory(prefix="vitrail-fuzz-") as folder:
        place = Path(folder) / "home"
        place.mkdir()
        for name, content in case.files.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        return _forked(case, place, limit_s, patience_s, mebibytes)


def _forked(case: Case, folder: Path, limit_s: int, patience_s: float, room: int) -> Outcome:
    sys.stdout.flush()
    sys.stderr.flush()
    begin = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(case, folder, writing, limit_s, room)
    os.close(writing)
    data = _read(reading, begin + patience_s)
    if data is None:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    was_ended = data is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU)
    if not data:
        return Outcome(None, seconds=seconds, was_ended=was_ended)
    told = json.loads(data)
    mebibytes = max(0.0, usage.ru_maxrss * KILO - told.pop("before")) / MEBI
    return Outcome(**told, seconds=seconds, mebibytes=mebibytes)


def _read(pipe: int, deadline: float) -> bytes | None:
    """Read a child's report until it closes the pipe; None if it does not before the deadline."""
    parts = []
    with open(pipe, "rb", buffering=0) as told:
        while True:
            ready, _, _ = select.select([told], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            part = told.read(MEBI)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _child(case: Case, folder: Path, pipe: int, limit_s: int, room: int) -> None:
    """Run a case in the child, write its report to the pipe and exit; does not return."""
    out, err, trace, code, before = io.StringIO(), io.StringIO(), "", None, _resident()
    try:
        addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (addresses + (room + SPARE) * MEBI, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MEBI * KILO, resource.RLIM_INFINITY))
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.chdir(folder)
        os.environ.update(HOME=str(folder))
        sys.argv = ["vitrail", *case.words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code, trace = _answer()
    except BaseException:
        trace = traceback.format_exc()
    finally:
        with contextlib.suppress(BaseException):
            _tell(pipe, {"before": before, "code": code, "out": out.getvalue(), "err": err.getvalue(), "trace": trace})
        os._exit(0)


def _answer() -> tuple[int | None, str]:
    """Run the command line; return its exit code, or None and the traceback of an uncaught exception."""
    from vitrail.cli import app as cli

    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1, ""
    except BaseException:
        return None, traceback.format_exc()[-8000:]
    return 0, ""


def _tell(pipe: int, data: dict) -> None:
    """Write a report to a pipe completely, in several writes if needed."""
    data = {name: value[-40_000:] if isinstance(value, str) else value for name, value in data.items()}
    left = json.dumps(data).encode("utf-8", "replace")
    while left:
        left = left[os.write(pipe, left) :]


def _resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
