"""Progress as an observer of the run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vitrail.core.hookspecs import hookimpl

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

LINE_EVERY_S = 5.0


class Progress:
    """Shows step, stage and time left; a context manager, since the bar owns the terminal meanwhile."""

    def __init__(self, console: Console):
        self._console = console
        self._bar: Any = None
        self._task: Any = None
        self._begin = self._shown = 0.0
        self._total = 0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            from rich import progress as rich_progress

            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("stage {task.fields[stage]}"),
                rich_progress.BarColumn(),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TimeElapsedColumn(),
                rich_progress.TextColumn("left"),
                rich_progress.TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @hookimpl
    def vitrail_run_start(self, num_steps: int) -> None:
        self._begin = self._shown = time.monotonic()
        self._total = num_steps
        if self._bar is not None:
            self._task = self._bar.add_task("", total=num_steps, stage=1)

    @hookimpl
    def vitrail_step_end(self, step: Any) -> None:
        done, now = step.index + 1, time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, stage=step.stage + 1)
        elif done == self._total or now - self._shown > LINE_EVERY_S or done == 2:
            self._shown = now
            left = (now - self._begin) / done * (self._total - done)
            self._console.print(f"step {done}/{self._total}, stage {step.stage + 1}, about {left:.0f} s left")
