"""The command line's own process, where start-up may be shortened by what a caller's process should not suffer.

``python -m vitrail`` and the installed script own it; a program that calls ``vitrail.cli.app.main`` keeps its own.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

BY_LOADING = "VITRAIL_PLANS_BY_LOADING"  # set for a process that takes over from one that could not tell the plan


class _Process:
    """What is known of this process."""

    is_own = False
    plans_by_loading = False


def claim() -> None:
    """Declare that the process is the command line's own; the first statement of its entry point."""
    _Process.is_own = True
    _Process.plans_by_loading = os.environ.pop(BY_LOADING, None) is not None


@contextmanager
def starting() -> Iterator[None]:
    """Start and collect garbage once, at the end; what is there then is never looked through again.

    Collections while torch and its companions are imported take a fifth of the time.
    """
    if not _Process.is_own or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@contextmanager
def planning_imports() -> Iterator[None]:
    """Import of diffusers what a plan needs."""
    from vitrail.backbones.loading.library_imports import for_plans

    with for_plans() if _Process.is_own else nullcontext():
        yield


def plans_by_loading() -> bool:
    """Whether a plan without weights has been tried in vain by the process that this one took over from."""
    return _Process.plans_by_loading


def start_again() -> None:
    """Run the same command in this process's place, planning with the model loaded; no effect in a caller's process.

    Libraries that were imported for a plan cannot load a model.
    """
    if not _Process.is_own:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.environ[BY_LOADING] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
