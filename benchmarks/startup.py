"""Measure what a command costs before its work begins: CPU seconds and wall seconds, median of several calls.

Usage: python benchmarks/startup.py [--repeats 5] [--only "first forward"]

Each call is a new process, and the processes that it starts count, too. CPU seconds are user plus system time, which
other load of the machine hardly changes. "first forward" ends where the network would be asked for the first time.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vitrail.experiments.run.origin import commit_of_vitrail

SMALL = ["a fox", "--method", "direct", "--size", "64", "--steps", "1", "--force"]
RUN = 'prompt = "a fox"\nscheduler = "DDIMScheduler"\nwidth = 512\nheight = 512\n'
UNTIL_FORWARD = """
import os, sys
from vitrail.__main__ import main
from vitrail.core.engine.network import Network
Network.predict = lambda *rows: os._exit(0)
sys.argv[0] = "vitrail"
main()
"""
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "--help": ["-m", "vitrail", "--help"],
    "methods": ["-m", "vitrail", "methods"],
    "plugins": ["-m", "vitrail", "plugins"],
    "check": ["-m", "vitrail", "check", "run.toml"],
    "sample --dry-run": ["-m", "vitrail", "sample", "a fox", "--dry-run"],
    "first forward": ["-c", UNTIL_FORWARD, "sample", "a fox"],
    "sample, one step": ["-m", "vitrail", "sample", *SMALL],
    "sample --ranks 2, one step": ["-m", "vitrail", "sample", *SMALL, "--ranks", "2"],
}


def seconds(arguments, folder) -> tuple[float, float]:
    """Return the CPU and wall seconds of one call.

    Args:
        arguments: Arguments of Python.
        folder: Working folder.
    """
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main(
    repeats: int = 5,
    only: Annotated[str, typer.Option(help="Commands whose name has this in it.")] = "",
) -> None:
    """Measure every command, in turns, and print the table."""
    chosen = {name: arguments for name, arguments in COMMANDS.items() if only in name}
    measured = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "run.toml").write_text(RUN)
        for arguments in chosen.values():
            seconds(arguments, folder)  # the first call may compile and read files that later ones find
        for _ in range(repeats):
            for name, arguments in chosen.items():
                measured[name].append(seconds(arguments, folder))
    table = Table("command", "CPU s", "least", "wall s", box=None, header_style="bold")
    for name, found in measured.items():
        cpu, wall = (statistics.median(each) for each in zip(*found, strict=True))
        table.add_row(name, f"{cpu:.2f}", f"{min(each for each, _ in found):.2f}", f"{wall:.2f}")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    console = Console(width=120)
    console.print(f"median of {repeats}, OMP_NUM_THREADS {threads}, {platform.machine()}, {commit_of_vitrail()}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
