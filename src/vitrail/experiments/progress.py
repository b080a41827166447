"""Progress over cells: a bar on a terminal, sparse plain lines elsewhere, with the time that is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vitrail.progress import FIRST_PAUSE_S, LAST_PAUSE_S, duration, started_bar

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console


class CellProgress:
    """Counts work, since a cell of one row may cost many times a cell of another; a context manager."""

    def __init__(self, console: Console, count: int, work: float):
        self._console, self._count, self._total = console, count, work
        self._done, self._work, self._failed = 0, 0.0, 0
        self._began = time.monotonic()
        self._pause, self._shown = FIRST_PAUSE_S, 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> CellProgress:
        self._began = time.monotonic()
        if self._console.is_terminal:
            self._bar = started_bar(self._console)
            self._task = self._bar.add_task(f"cell 1/{self._count}", total=self._total, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, share: float) -> None:
        """A part of the work of the cell at hand is done; on a terminal only."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._work + share)

    def cell_done(self, name: str, work: float, failed: bool) -> None:
        """A cell is done, or has failed."""
        self._done, self._work, self._failed = self._done + 1, self._work + work, self._failed + failed
        told = f", {self._failed} failed" if self._failed else ""
        text, left = f"{self._done}/{self._count} cells{told}: {name}", self._left()
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._work, description=text, left=left)
        elif self._done == self._count or now - self._shown > self._pause:
            self._pause = min(LAST_PAUSE_S, 1.5 * self._pause)
            self._shown = now
            self._console.print(f"{text}, {left}" if left else text)

    def _left(self) -> str:
        if self._done == self._count:
            return ""
        spent = time.monotonic() - self._began
        return f"about {duration(spent / self._work * (self._total - self._work))} left"
