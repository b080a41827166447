"""A call of a strategy, as error messages name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, ParamSpec, TypeVar

from attrs import frozen

from vitrail.errors import ShapeError

if TYPE_CHECKING:
    from vitrail.core.schedule.step import Step

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
Naming = Callable[[str, type], "str | None"]  # returns the registered name of a class in a slot, if it has one


def unnamed(slot: str, cls: type) -> None:
    """Return None: no class has a registered name."""


@frozen(eq=False)
class StrategyCall:
    """One call of a strategy.

    Attributes:
        slot: Slot that the strategy fills; that of a metric, of features or of a reference set in a report.
        strategy: The strategy that is called.
        step: Position of the run; None before the first step.
        named: Look-up of registered names.
    """

    slot: str
    strategy: object
    step: Step | None = None
    named: Naming = unnamed

    def __str__(self) -> str:
        """E.g. ``guidance 'sync' (SyncGuidance) at step 3 of 10``; steps are counted from 1."""
        cls = type(self.strategy)
        name = self.named(self.slot, cls)
        slot = self.slot.removesuffix("s")  # a metric, not a metrics
        who = f"{slot} {cls.__name__}" if name is None else f"{slot} {name!r} ({cls.__name__})"
        return who if self.step is None else f"{who} at step {self.step.index + 1} of {self.step.num_steps}"

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Add a note that names this call to an exception of the strategy."""
        try:
            yield
        except Exception as error:
            error.add_note(f"raised by {self}")
            raise

    def ask(self, method: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """Call a method of the strategy within ``noted``."""
        with self.noted():
            return method(*args, **kwargs)

    def refuse(self, what: str) -> NoReturn:
        """Raise for a returned value that the slot's contract does not allow.

        Args:
            what: Rest of the sentence that begins with the strategy, e.g. "must return ..., got ...".

        Raises:
            ShapeError: Always.
        """
        raise ShapeError(f"{self} {what}")
