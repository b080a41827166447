"""How far a count of equal things is: a bar on a terminal, sparse plain lines elsewhere, with the time that is left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vitrail.progress import FIRST_PAUSE_S, LAST_PAUSE_S, duration, started_bar

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console


class Meter:
    """Counts up to a total that may be unknown; a context manager. Says nothing if there is nothing to count."""

    def __init__(self, console: Console, name: str, total: int | None):
        self._console, self._name, self._total = console, name, total
        self._done, self._began = 0, time.monotonic()
        self._pause, self._shown = FIRST_PAUSE_S, self._began
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Meter:
        if self._console.is_terminal and self._total != 0:
            self._bar = started_bar(self._console)
            self._task = self._bar.add_task(self._name, total=self._total, left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self) -> None:
        """One more is done."""
        self._done += 1
        now, left = time.monotonic(), self._left()
        text = f"{self._name} {self._done}" + ("" if self._total is None else f"/{self._total}")
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text, left=left)
        elif now - self._shown > self._pause:
            self._pause, self._shown = min(LAST_PAUSE_S, 1.5 * self._pause), now
            self._console.print(f"{text}, {left}" if left else text)

    def _left(self) -> str:
        if self._total is None or self._done == self._total:
            return ""
        spent = time.monotonic() - self._began
        return f"about {duration(spent / self._done * (self._total - self._done))} left"
