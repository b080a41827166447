"""Protocol for progress reports of an experiment's long loops."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Counter(Protocol):
    """Counts finished items."""

    def step(self) -> None:
        """Count one more item as finished."""


class Listener(Protocol):
    """Receives progress reports."""

    def count(self, name: str, total: int | None) -> AbstractContextManager[Counter]:
        """Begin a count of items of a kind, ``name``, up to ``total`` if that is known, for the ``with`` block."""
