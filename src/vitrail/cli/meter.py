"""Progress of a count: a bar on a terminal, occasional lines elsewhere, with the estimated time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vitrail.cli.progress import FIRST_PAUSE_S, LAST_PAUSE_S, duration, started_bar

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console


class Meter:
    """Context manager that shows progress up to a total, which may be unknown; shows nothing for a total of 0.

    The time left is estimated by work, since items may differ in cost.

    Args:
        console: The console.
        name: What is counted, in the singular.
        total: Number of items; None if unknown.
        work: Work of all items, in any unit; ``total`` if None.
    """

    def __init__(self, console: Console, name: str, total: int | None, work: float | None = None):
        self._console, self._name, self._total = console, name, total
        self._work = total if work is None else work
        self._done, self._spent = 0, 0.0
        self._began = time.monotonic()
        self._pause, self._shown = FIRST_PAUSE_S, self._began
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Meter:
        if self._console.is_terminal and self._total != 0:
            self._bar = started_bar(self._console)
            self._task = self._bar.add_task(self._name, total=self._work, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def part(self, work: float) -> None:
        """Show a partially finished item by moving the bar of a terminal; ``work`` is its finished part."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._spent + work)

    def step(self, suffix: str = "", work: float = 1.0) -> None:
        """Count one more finished item.

        Args:
            suffix: Text to show after its number.
            work: Its work, in the unit of the total work.
        """
        self._done, self._spent = self._done + 1, self._spent + work
        now, left = time.monotonic(), self._left()
        text = f"{self._name} {self._done}" + ("" if self._total is None else f"/{self._total}") + suffix
        if self._bar is not None:
            self._bar.update(self._task, completed=self._spent, description=text, left=left)
        elif now - self._shown > self._pause:
            self._pause, self._shown = min(LAST_PAUSE_S, 1.5 * self._pause), now
            self._console.print(f"{text}, {left}" if left else text)

    def _left(self) -> str:
        if self._work is None or self._done == self._total:
            return ""
        passed = time.monotonic() - self._began
        return f"about {duration(passed / self._spent * (self._work - self._spent))} left"
