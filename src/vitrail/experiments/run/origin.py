"""Where numbers come from: the commits of Vitrail that sampled and report, the machines and the versions."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.experiments.run.store import Outcome

if TYPE_CHECKING:
    import torch

DIGITS = 12
CPUINFO = Path("/proc/cpuinfo")
NOT_NOTED = "a commit that was not noted"  # nor is it of what is no checkout


@functools.cache
def commit_of_vitrail() -> str | None:
    """The commit that Vitrail is checked out at, with ``-dirty`` if files are changed; None if it is no checkout.

    Asked once a process, for what is checked out later is not what the process has read.
    """
    git, folder = shutil.which("git"), Path(__file__).parents[2]
    if git is None:
        return None
    tracked = _answer(git, folder, "ls-files", "--error-unmatch", "__init__.py")
    return tracked and _answer(git, folder, "describe", "--always", "--dirty", f"--abbrev={DIGITS}", "--exclude=*")


def _answer(git: str, folder: Path, *arguments: str) -> str | None:
    done = subprocess.run([git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


@functools.cache
def machine(device: torch.device) -> str:
    """Processor, cores and system, this process's threads, and the device: its name, if it has one."""
    import torch

    named = getattr(torch.get_device_module(device), "get_device_name", None)
    device_name = device.type if named is None else named(device)
    threads = torch.get_num_threads()
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"{threads} thread{'s' * (threads > 1)}, {device_name}"
    )


def _processor() -> str:
    """Its model's name where the system tells it."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.processor() or platform.machine()


def machines_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many pictures each machine made."""
    return Counter(outcome.machine for outcome in outcomes if outcome.machine)


def commits_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many pictures each commit of Vitrail made."""
    return Counter(outcome.commit or NOT_NOTED for outcome in outcomes)


def versions_of(outcomes: Iterable[Outcome]) -> dict[str, tuple[str, ...]]:
    """Of each library all versions that were at work; more than one means pictures that do not quite compare."""
    found: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        for library, version in outcome.versions.items():
            found.setdefault(library, {})[version] = None
    return {library: tuple(versions) for library, versions in found.items()}
