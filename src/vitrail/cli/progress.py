"""Progress of a run, as a plugin that observes it: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from bisect import bisect
from typing import TYPE_CHECKING, Any

from vitrail.core.method.hookspecs import hookimpl

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from vitrail.sampling.result import Plan

FIRST_PAUSE_S, LAST_PAUSE_S = 5.0, 60.0  # between plain lines; the pause grows, so that the log of a long run is short


class Progress:
    """Context manager and plugin that shows step, stage and time left.

    The time left is estimated by work, since steps of different stages differ in cost. The first step is left out of
    the estimate, because it includes one-time work.

    Args:
        console: The console.
        bar: Whether to show a bar instead of lines.
    """

    def __init__(self, console: Console, bar: bool):
        self._console, self._wants_bar = console, bar
        self._bar: Any = None
        self._task: Any = None
        self._work: list[float] = []  # work of every step of one picture
        self._begins = [0]  # first steps of the stages
        self._num_stages = self._num_images = 1
        self._first = 0
        self._picture = -1
        self._measured: tuple[float, float] | None = None  # time of the end of the first step, and its work
        self._pause, self._shown = FIRST_PAUSE_S, 0.0

    def expect(self, plan: Plan, num_images: int) -> None:
        """Set the plan of the run, which gives the work of each step, and the number of pictures."""
        self._work = [stage.work for stage in plan.stages for _ in range(stage.num_steps)]
        self._begins = [stage.first_step for stage in plan.stages]
        self._num_stages, self._num_images = len(plan.stages), num_images
        self._first = plan.first_step

    def __enter__(self) -> Progress:
        if self._wants_bar:
            self._bar = started_bar(self._console)
            self._task = self._bar.add_task("first step", total=sum(self._work) * self._num_images, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @hookimpl
    def vitrail_run_start(self) -> None:
        self._picture += 1

    @hookimpl
    def vitrail_step_end(self, step: Any) -> None:
        now, steps, done = time.monotonic(), len(self._work), step.index + 1 - self._first
        work = self._picture * sum(self._work) + sum(self._work[:done])
        left = self._left(now, work)
        last = done == steps and self._picture + 1 == self._num_images
        text = f"step {done}/{steps}, stage {bisect(self._begins, step.index)}/{self._num_stages}"
        if self._num_images > 1:
            text = f"picture {self._picture + 1}/{self._num_images}, {text}"
        if self._bar is not None:
            self._bar.update(self._task, completed=work, description="decoding" if last else text, left=left)
        elif last or (left and (not self._shown or now - self._shown > self._pause)):
            self._pause = FIRST_PAUSE_S if not self._shown else min(LAST_PAUSE_S, 1.5 * self._pause)
            self._shown = now
            self._console.print(f"{text}, decoding" if last else f"{text}, {left}")

    def _left(self, now: float, work: float) -> str:
        if self._measured is None:
            self._measured = now, work
            return ""
        since, first = self._measured
        rest = sum(self._work) * self._num_images - work
        return f"about {duration((now - since) / (work - first) * rest)} left"


def started_bar(console: Console) -> Any:
    """Start a bar with a description, the elapsed time and the field ``left``; it is cleared when stopped."""
    from rich import progress as rich_progress

    bar = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("{task.fields[left]}", markup=False),
        console=console,
        transient=True,
    )
    bar.start()
    return bar


def duration(seconds: float) -> str:
    """Format seconds as seconds below 90 s, minutes below 90 min, else hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
