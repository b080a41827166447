"""Kill a rank at a random moment, go on with another number of ranks, compare the bytes; again and again.

Usage: python tools/kill_and_resume.py [--times 10]
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

WORDS = ["sample", "a fox on a snow field", "--steps", "12", "--size", "256", "--row-batch", "2", "--method", "asg"]
APART = ["--set", "stages.0.patching.interaction=none"]  # every other time: ranks that go apart
KEEP = ["--checkpoint", "run.ckpt", "--checkpoint-every", "1"]
RANKS = (1, 2, 3)


def start(folder: Path, *words: str) -> subprocess.Popen:
    """The program, with one thread a rank, so that bytes can be compared."""
    command = [sys.executable, "-m", "vitrail", *WORDS, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def processes(parent: int) -> list[int]:
    """The ranks of a run, or its only process."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in listed.stdout.split()] or [parent]


def once(folder: Path, chance: random.Random, whole: bytes, words: list[str]) -> str:
    """One kill and one resumption; what happened, or an AssertionError."""
    before, after = chance.sample(RANKS, 2)
    process = start(folder, *words, *KEEP, "--ranks", str(before), "-o", "fox.png")
    while not (folder / "run.ckpt").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    time.sleep(chance.uniform(0, 1.5))
    ranks = processes(process.pid)
    victim = chance.randrange(len(ranks))
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.kill(ranks[victim], signal.SIGKILL)
    process.communicate(timeout=120)
    if process.returncode == 0:
        (folder / "fox.png").unlink()
        return f"{before} ranks were done before the signal"
    assert not (folder / "fox.png").exists(), "a file that looks complete was left"
    resumed = start(folder, *words, *KEEP, "--ranks", str(after), "-o", "fox.png")
    out, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, out
    assert (folder / "fox.png").read_bytes() == whole, "the bytes differ"
    (folder / "fox.png").unlink()
    return f"{before} ranks, SIGKILL to process {victim}, went on with {after}: same bytes"


def main(times: int = 10, seed: Annotated[int, typer.Option(help="Of ranks and moments.")] = 0) -> None:
    """Print one line each time, and the score."""
    console, chance, done = Console(width=120), random.Random(seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        variants = []
        for index, words in enumerate(([], APART)):
            process = start(folder, *words, "-o", f"whole-{index}.png")
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0, out
            variants.append((words, (folder / f"whole-{index}.png").read_bytes()))
        while done < times:
            words, whole = variants[done % 2]
            told = once(folder, chance, whole, words)
            done += "same bytes" in told
            console.print(f"{done}/{times}: {told}{', no exchange' if words else ''}")
    console.print(f"{done} of {times} runs went on after a kill with another number of ranks and gave the same bytes")


if __name__ == "__main__":
    typer.run(main)
