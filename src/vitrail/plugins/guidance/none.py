"""``none``: no guidance, a strategy of its own, so that the engine has no branch for its absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.protocols import Point

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen
class NoGuidance:
    """No guidance: predictions stay as they are, and ranks exchange no message for it."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    is_idle: ClassVar[bool] = True

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """The subject, unchanged."""
        return subject, None

    def lag(self, step: Step) -> None:
        """None: no message is followed."""
        return

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """Never called, since ``lag`` is None."""
        raise NotImplementedError

    def follow(self, step: Step, subject: Prediction, key: int, message: Tensor | None) -> Prediction:
        """The subject, unchanged."""
        return subject
