"""Run experiments uninterrupted, and in two shards that are killed and resumed, and compare their tables.

Usage: python tools/kill_experiments.py experiments/asg-figure-7.toml --set "sizes=['2x']" --set scenes=2

The uninterrupted run is concurrent with the shards, of which the first is killed (SIGKILL) and the second interrupted
(SIGINT); both are resumed, and their folders merged. All entries of the tables of numbers, differences and orders
except measured costs must be equal to the last digit.
"""

import csv
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer

from vitrail.experiments.run.store import PLAN, Folder

TABLES = ("tables.csv", "differences.csv", "orders.csv")
TIMED = ("seconds", "MiB")  # columns of measured costs, which differ between runs
PAUSE_S = 0.05  # between two looks at a folder
SHARE = 5  # a shard is ended when one in so many of the plan's cells has finished
Entry = tuple[str, int, str, str]  # table, line, column and value


def vitrail(*words: str) -> subprocess.Popen[bytes]:
    """Start the command line."""
    return subprocess.Popen([sys.executable, "-m", "vitrail", *words], stdout=subprocess.DEVNULL)


def done(folder: Path) -> int:
    """Return the number of outcomes in a folder."""
    return sum(file.read_text().count("\n") for file in folder.glob("cells-*.jsonl"))


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that is killed at the end of the block, also after an exception."""
    with vitrail(*words) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def finished(*words: str) -> None:
    """Run the command line to its end.

    Raises:
        SystemExit: If it fails.
    """
    with running(*words) as process:
        if process.wait():
            raise SystemExit(f"failed: vitrail {' '.join(words)}")


def broken(how: signal.Signals, folder: Path, *words: str) -> int:
    """Start a run, send it a signal when a fifth of the plan's cells has finished, and return how many had.

    Args:
        how: The signal.
        folder: Output folder of the run.
        words: Arguments of the command.

    Raises:
        SystemExit: If the run ended before the signal.
    """
    with running(*words) as process:
        while process.poll() is None and not (folder / PLAN).exists():
            time.sleep(PAUSE_S)
        cells = max(1, len(Folder(folder).plan().cells) // SHARE)
        while process.poll() is None and done(folder) < cells:
            time.sleep(PAUSE_S)
        process.send_signal(how)
        if process.wait() == 0:
            raise SystemExit(f"vitrail {' '.join(words)} was over before it was ended; make it longer")
    return done(folder)


def table(folder: Path) -> list[Entry]:
    """Return all entries of a folder's tables except measured costs."""
    found = []
    for name in TABLES:
        with (folder / name).open(newline="") as file:
            lines = list(csv.DictReader(file))
        found += [
            (name, number, column, value)
            for number, line in enumerate(lines)
            for column, value in line.items()
            if not column.startswith(TIMED)
        ]
    return found


def different(one: list[Entry], two: list[Entry]) -> list[tuple[Entry | None, Entry | None]]:
    """Return the pairs of different entries; None where one list is shorter."""
    return [pair for pair in zip_longest(one, two) if pair[0] != pair[1]]


def compare(file: Path, sets: list[str], place: Path) -> str:
    """Run one experiment both ways and return a summary.

    Args:
        file: The experiment.
        sets: Overrides of it.
        place: Folder for the runs.

    Raises:
        SystemExit: If a run fails or tables differ.
    """
    options = [word for each in sets for word in ("--set", each)]
    whole, parts = place / "whole", [place / "part0", place / "part1"]
    told = []
    with running("run", str(file), "--out", str(whole), *options) as uninterrupted:
        for number, (how, part) in enumerate(zip((signal.SIGKILL, signal.SIGINT), parts, strict=True)):
            words = ["run", str(file), "--out", str(part), "--shard", f"{number}/2", *options]
            told.append(f"{how.name} after {broken(how, part, *words)}")
            finished(*words)
        if uninterrupted.wait():
            raise SystemExit(f"failed: the run of {file} that nobody ended")
    for folder, report in (
        (whole, [str(whole)]),
        (place / "merged", [*map(str, parts), "--out", str(place / "merged")]),
    ):
        finished("report", *report, "--no-plots")
        if not table(folder):
            raise SystemExit(f"{file}: the table of {folder.name} is empty")
    one = table(whole)
    if odd := different(one, table(place / "merged")):
        raise SystemExit(f"{file}: tables differ in {len(odd)} places: {odd[:3]}")
    ended = f"{done(whole)} cells, shards ended by {' and '.join(told)}"
    return f"{file.stem}: {ended}; {len(one)} entries of {len(TABLES)} tables, all equal"


def main(
    files: Annotated[list[Path], typer.Argument(help="Experiments.")],
    sets: Annotated[list[str] | None, typer.Option("--set", help="Overrides, to make them small.")] = None,
) -> None:
    """Compare each experiment and print a line."""
    for file in files:
        place = Path(tempfile.mkdtemp(prefix="experiment-"))
        print(compare(file, sets or [], place), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    typer.run(main)
