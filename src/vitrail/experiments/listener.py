"""Who hears how far a long count of an experiment has come."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol


class Counter(Protocol):
    """Counts what is done."""

    def step(self) -> None:
        """One more is."""


class Listener(Protocol):
    """Hears of counts."""

    def count(self, name: str, total: int | None) -> AbstractContextManager[Counter]:
        """A long count begins: of what, and up to which number, if that is known."""
