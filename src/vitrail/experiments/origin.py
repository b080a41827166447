"""Where numbers come from: the commits of Vitrail that sampled and report, the machines and the versions."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import vitrail
from vitrail.experiments.store import Outcome

DIGITS = 12


@functools.cache
def commit_of_vitrail() -> str | None:
    """The commit that Vitrail is checked out at, with ``-dirty`` if files are changed; None if it is no checkout.

    Asked once a process, for what is checked out later is not what the process has read.
    """
    git, folder = shutil.which("git"), Path(vitrail.__file__).parent
    if git is None:
        return None
    tracked = _answer(git, folder, "ls-files", "--error-unmatch", "__init__.py")
    return tracked and _answer(git, folder, "describe", "--always", "--dirty", f"--abbrev={DIGITS}", "--exclude=*")


def _answer(git: str, folder: Path, *arguments: str) -> str | None:
    done = subprocess.run([git, "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def machines_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many pictures each machine made."""
    return Counter(outcome.machine for outcome in outcomes if outcome.machine)


def commits_of(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many pictures each commit of Vitrail made, of those of which it was noted."""
    return Counter(outcome.commit for outcome in outcomes if outcome.commit)


def versions_of(outcomes: Iterable[Outcome]) -> dict[str, tuple[str, ...]]:
    """Of each library all versions that were at work; more than one means pictures that do not quite compare."""
    found: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        for library, version in outcome.versions.items():
            found.setdefault(library, {})[version] = None
    return {library: tuple(versions) for library, versions in found.items()}
