"""A strategy that is asked something, as messages speak of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from attrs import frozen

from vitrail.errors import ShapeError

if TYPE_CHECKING:
    from vitrail.core.schedule.step import Step

Naming = Callable[[str, type], "str | None"]  # the registered name of a class in a slot, if it has one


def unnamed(slot: str, cls: type) -> None:
    """No class has a registered name."""


@frozen(eq=False)
class StrategyCall:
    """One question to a strategy.

    Attributes:
        slot: What it fills.
        strategy: Who is asked.
        step: Where the run stands; None before it.
        named: Knows registered names.
    """

    slot: str
    strategy: object
    step: Step | None = None
    named: Naming = unnamed

    def __str__(self) -> str:
        """E.g. ``guidance 'sync' (SyncGuidance) at step 3 of 10``; steps are counted from 1, as users do."""
        cls = type(self.strategy)
        name = self.named(self.slot, cls)
        who = f"{self.slot} {cls.__name__}" if name is None else f"{self.slot} {name!r} ({cls.__name__})"
        return who if self.step is None else f"{who} at step {self.step.index + 1} of {self.step.num_steps}"

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Let an exception of the strategy say whose it is."""
        try:
            yield
        except Exception as error:
            error.add_note(f"raised by {self}")
            raise

    def refuse(self, what: str) -> NoReturn:
        """Raise for an answer that the slot's contract does not allow.

        Args:
            what: Continues the sentence that the strategy begins, e.g. "must return ..., got ...".

        Raises:
            ShapeError: Always.
        """
        raise ShapeError(f"{self} {what}")
