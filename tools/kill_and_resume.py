"""Kill runs at random moments, resume them from their checkpoints on other ranks, and compare the pictures' bytes.

Usage: python tools/kill_and_resume.py [--count 40] [--seed 0]

A run of the demo model on one to three ranks, gloo processes or threads, writes a checkpoint after every step; when it
has reached a random step, a process of the run is killed (SIGKILL). The same command then resumes on another number of
ranks, and its picture must have the bytes of an undisturbed run. An attempt counts if the run was killed between its
first checkpoint and its end, and the second run reports that it resumed; otherwise it is repeated. Methods alternate,
most of them cascades.
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

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts threads, which do not survive a fork

import typer
from attrs import frozen

from vitrail.core.engine.state_file import load_state

SAMPLE = ("sample", "a fox on a snow field", "--size", "256", "--steps", "6", "--row-batch", "2", "-v", "-o", "fox.png")
KEEP = ("--checkpoint", "run.ckpt", "--checkpoint-every", "1")
METHODS = (
    ("demofusion",),
    ("asg",),
    ("diffusehigh",),
    ("asg", "--set", "stages.0.patching.interaction=none"),  # ranks advance independently
    ("asg-cascade",),
    ("accdiffusion",),
    ("ap-ldm",),
    ("multidiffusion", "--num-images", "1", "--scheduler", "DPMSolverMultistepScheduler"),  # a scheduler with state
)
PAUSE_S, PATIENCE_S = 0.01, 600


@frozen
class Ranks:
    """Number of ranks and their communication backend."""

    count: int
    comm: str

    @property
    def words(self) -> tuple[str, ...]:
        """Options of the command line."""
        return ("--ranks", str(self.count), *(("--comm", self.comm) if self.count > 1 else ()))

    def __str__(self) -> str:
        """Format as ``3 x gloo``, or ``1`` for a single rank."""
        return f"{self.count} x {self.comm}" if self.count > 1 else "1"


def run_here(words: tuple[str, ...]) -> None:
    """Run the command line in this forked process, with output to the file ``said``."""
    from vitrail.cli import app as cli

    out = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv = ["vitrail", *words]
    cli.main()


@contextlib.contextmanager
def started(words: tuple[str, ...]):
    """Start a run in the working folder in a forked process, which is terminated at the end of the block."""
    process = multiprocessing.get_context("fork").Process(target=run_here, args=(words,))
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.terminate()
            process.join()


def finished(words: tuple[str, ...]) -> str:
    """Run to the end and return the output.

    Raises:
        AssertionError: If the run fails.
    """
    with started(words) as process:
        process.join(PATIENCE_S)
        said = Path("said").read_text()
        assert process.exitcode == 0, said
    return said


def processes(parent: int) -> list[int]:
    """Return the process ids of a run's ranks, or of its only process."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()] or [parent]


def steps_kept() -> int:
    """Return the number of steps in the checkpoint of the current picture; 0 if there is none."""
    file = Path("run.ckpt")
    current = load_state(file)["current"] if file.exists() else None
    return current["steps"] if current else 0


def resumed_after(said: str) -> int | None:
    """Return the step from which a run reports that it resumed; None if it does not."""
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return next((event["steps"] for event in events if event["event"] == "run.resumed"), None)


def killed(words: tuple[str, ...], after: int, chance: random.Random) -> int:
    """Run, and kill a random process once the checkpoint has reached a step.

    Args:
        words: Arguments of the command.
        after: Number of steps in the checkpoint.
        chance: Selects the process.

    Returns:
        The number of steps in the checkpoint at the end; 0 if the run ended before the kill.
    """
    with started(words) as process:
        while process.is_alive() and steps_kept() < after:
            time.sleep(PAUSE_S)
        victim = chance.choice(processes(process.pid))
        with contextlib.suppress(ProcessLookupError):  # the process has ended
            os.kill(victim, signal.SIGKILL)
        process.join(PATIENCE_S)
        if process.exitcode == 0:
            return 0
    assert not Path("fox.png").exists(), "a file that looks complete was left"
    return steps_kept()


@frozen
class Method:
    """A method with its undisturbed result.

    Attributes:
        words: Arguments that select the method.
        whole: Bytes of the undisturbed picture.
        steps: Number of steps of a run.
    """

    words: tuple[str, ...]
    whole: bytes
    steps: int

    @classmethod
    def undisturbed(cls, words: tuple[str, ...]) -> "Method":
        """Run a method undisturbed."""
        said = finished((*SAMPLE, "-m", *words))
        whole = Path("fox.png").read_bytes()
        Path("fox.png").unlink()
        found = re.search(r"^(\d+) steps with", said, re.MULTILINE)
        assert found, said
        return cls(words, whole, int(found[1]))

    def once(self, before: Ranks, after: Ranks, chance: random.Random) -> str:
        """Kill a run once and resume it.

        Args:
            before: Ranks of the killed run.
            after: Ranks of the resumed run.
            chance: Selects step and process.

        Returns:
            A description; "" if the attempt does not count.

        Raises:
            AssertionError: If the resumed run differs.
        """
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
    """Draw ranks of the killed and the resumed run, of different numbers."""
    comms = ("gloo", "in-process")
    before, after = (Ranks(count, chance.choice(comms)) for count in chance.sample((1, 2, 3), 2))
    return before, after


def main(
    count: Annotated[int, typer.Option(help="Runs that really went on.")] = 40,
    seed: Annotated[int, typer.Option(help="Of ranks and moments.")] = 0,
) -> None:
    """Print one line per attempt and a summary; the exit code is 1 if one failed."""
    from vitrail.sampling.sampler import Sampler

    Sampler.from_pretrained("demo")  # imports modules that every fork needs
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
