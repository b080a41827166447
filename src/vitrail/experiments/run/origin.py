"""Provenance of results: commits of Vitrail, machines, versions of libraries."""

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

DIGITS = 12  # of a commit's hash
CPUINFO = Path("/proc/cpuinfo")
NOT_NOTED = "a commit that was not noted"  # of older outcomes and of installations that are no checkout


@functools.cache
def commit_of_vitrail() -> str | None:
    """Return the commit of Vitrail's checkout, with ``-dirty`` if files are changed; None if it is not a checkout.

    Cached for the process, since a later checkout does not change the code that is already imported.
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
    """Describe the machine: processor, number of cores, system, this process's threads, and the device's name."""
    import torch

    named = getattr(torch.get_device_module(device), "get_device_name", None)
    device_name = device.type if named is None else named(device)
    threads = torch.get_num_threads()
    return (
        f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, "
        f"{threads} thread{'s' * (threads > 1)}, {device_name}"
    )


def _processor() -> str:
    """Name of the processor's model where ``/proc/cpuinfo`` has it, else its architecture."""
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.exists() else ()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.processor() or platform.machine()


def machines_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count the outcomes of each machine."""
    return Counter(outcome.machine for outcome in outcomes if outcome.machine)


def commits_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Count the outcomes of each commit of Vitrail."""
    return Counter(outcome.commit or NOT_NOTED for outcome in outcomes)


def versions_of(outcomes: Iterable[Outcome]) -> dict[str, tuple[str, ...]]:
    """Return all versions of each library; with more than one, pictures may not be comparable."""
    found: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        for library, version in outcome.versions.items():
            found.setdefault(library, {})[version] = None
    return {library: tuple(versions) for library, versions in found.items()}
