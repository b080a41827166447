"""Kill runs at moments drawn by chance, go on from their checkpoints with other ranks, and compare the bytes.

Usage: python tools/kill_and_resume.py [--count 40] [--seed 0]

A run of the demo model on one to three ranks, processes that talk through gloo or threads of one process, writes a
checkpoint after every step; when that has come to a step drawn by chance, a process of the run is killed (SIGKILL). The
same command then goes on with another number of ranks, and its picture must have the bytes of a run that nobody killed.
It counts if the run was between its first checkpoint and its end when it was killed, and if the one that goes on says
that it does; else it is tried again. Methods take turns, most of them with canvases that grow.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts threads, which do not live through a fork

import typer
from attrs import frozen

from vitrail.core.engine.state_file import load_state

SAMPLE = ("sample", "a fox on a snow field", "--size", "256", "--steps", "6", "--row-batch", "2", "-v", "-o", "fox.png")
KEEP = ("--checkpoint", "run.ckpt", "--checkpoint-every", "1")
METHODS = (
    ("demofusion",),
    ("asg",),
    ("diffusehigh",),
    ("asg", "--set", "stages.0.patching.interaction=none"),  # ranks go apart
    ("asg-cascade",),
    ("accdiffusion",),
    ("ap-ldm",),
    ("multidiffusion", "--num-images", "1", "--scheduler", "DPMSolverMultistepScheduler"),  # steps that remember
)
PAUSE_S, PATIENCE_S = 0.01, 600


@frozen
class Ranks:
    """How many, and what they are."""

    count: int
    comm: str

    @property
    def words(self) -> tuple[str, ...]:
        """Options of the command line."""
        return ("--ranks", str(self.count), *(("--comm", self.comm) if self.count > 1 else ()))

    def __str__(self) -> str:
        """E.g. ``3 x gloo``."""
        return f"{self.count} x {self.comm}" if self.count > 1 else "1"


def run_here(words: tuple[str, ...]) -> None:
    """The program, in a process that has its libraries; ranks that are processes begin anew."""
    from vitrail.cli import app as cli

    out = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["vitrail", *words]
    cli.main()


@contextlib.contextmanager
def started(words: tuple[str, ...]):
    """A run in the working folder, which does not outlive the block."""
    process = multiprocessing.get_context("fork").Process(target=run_here, args=(words,))
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.terminate()
            process.join()


def finished(words: tuple[str, ...]) -> str:
    """What a run said that ended well."""
    with started(words) as process:
        process.join(PATIENCE_S)
        said = Path("said").read_text()
        assert process.exitcode == 0, said
    return said


def processes(parent: int) -> list[int]:
    """The ranks of a run, or its only process."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()] or [parent]


def steps_kept() -> int:
    """Steps of the picture in work that the checkpoint has; 0 if there is none."""
    file = Path("run.ckpt")
    current = load_state(file)["current"] if file.exists() else None
    return current["steps"] if current else 0


def resumed_after(said: str) -> int | None:
    """The steps after which a run says that it went on."""
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return next((event["steps"] for event in events if event["event"] == "run.resumed"), None)


def killed(words: tuple[str, ...], after: int, chance: random.Random) -> int:
    """Kill a process of a run once its checkpoint has so many steps; how many it has then, 0 if the run was faster."""
    with started(words) as process:
        while process.is_alive() and steps_kept() < after:
            time.sleep(PAUSE_S)
        victim = chance.choice(processes(process.pid))
        with contextlib.suppress(ProcessLookupError):  # it was faster
            os.kill(victim, signal.SIGKILL)
        process.join(PATIENCE_S)
        if process.exitcode == 0:
            return 0
    assert not Path("fox.png").exists(), "a file that looks complete was left"
    return steps_kept()


@frozen
class Method:
    """Words of a method, what it makes undisturbed, and in how many steps."""

    words: tuple[str, ...]
    whole: bytes
    steps: int

    @classmethod
    def undisturbed(cls, words: tuple[str, ...]) -> "Method":
        """Run it."""
        said = finished((*SAMPLE, "-m", *words))
        whole = Path("fox.png").read_bytes()
        Path("fox.png").unlink()
        found = re.search(r"^(\d+) steps with", said, re.MULTILINE)
        assert found, said
        return cls(words, whole, int(found[1]))

    def once(self, before: Ranks, after: Ranks, chance: random.Random) -> str:
        """One kill and one resumption; what happened, "" if it does not count, or an AssertionError."""
        words = (*SAMPLE, "-m", *self.words, *KEEP)
        kept = killed((*words, *before.words), chance.randint(1, self.steps - 1), chance)
        if not 0 < kept < self.steps:
            for file in ("fox.png", "run.ckpt"):
                Path(file).unlink(missing_ok=True)
            return ""
        said = finished((*words, *after.words))
        assert resumed_after(said) == kept, f"it did not go on from step {kept}: {said}"
        assert Path("fox.png").read_bytes() == self.whole, "the bytes differ"
        assert not Path("run.ckpt").exists(), "the checkpoint was left"
        Path("fox.png").unlink()
        return f"killed after step {kept} of {self.steps} on {before}, went on with {after}: same bytes"


def pairs(chance: random.Random) -> tuple[Ranks, Ranks]:
    """Ranks before and after, of another number."""
    comms = ("gloo", "in-process")
    before, after = (Ranks(count, chance.choice(comms)) for count in chance.sample((1, 2, 3), 2))
    return before, after


def main(
    count: Annotated[int, typer.Option(help="Runs that really went on.")] = 40,
    seed: Annotated[int, typer.Option(help="Of ranks and moments.")] = 0,
) -> None:
    """Print one line each time, and the score."""
    from vitrail.sampling.sampler import Sampler

    Sampler.from_pretrained("demo")  # whatever that imports is there in every fork
    chance, done, failed, begin = random.Random(seed), 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        methods: dict[tuple[str, ...], Method] = {}
        while done + failed < count:
            words = METHODS[(done + failed) % len(METHODS)]
            if words not in methods:
                methods[words] = Method.undisturbed(words)
            method = methods[words]
            before, after = pairs(chance)
            try:
                told = method.once(before, after, chance)
            except AssertionError as error:
                failed, told = failed + 1, f"{before}, then {after}: FAILED: {error}"
                for file in ("fox.png", "run.ckpt"):
                    Path(file).unlink(missing_ok=True)
            else:
                done += bool(told)
            print(f"{done}/{count}: {words[0]}: {told or 'over before it was killed; does not count'}", flush=True)
    minutes = (time.monotonic() - begin) / 60
    print(f"{done} of {count} runs went on from a checkpoint after a kill, on other ranks, with the same bytes")
    print(f"{failed} did not; {minutes:.0f} min")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    typer.run(main)
