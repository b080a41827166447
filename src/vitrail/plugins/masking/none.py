"""``none``: no mask, so guidance acts on every cell with its full weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

if TYPE_CHECKING:
    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen
class NoMask:
    """Guidance acts on every cell; a stage's default."""

    needs: ClassVar[frozenset[str]] = frozenset()
    is_everywhere: ClassVar[bool] = True

    @property
    def request(self) -> None:
        """None: no attention maps are captured."""
        return None

    def init(self) -> None:
        """None: there is no state."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: None) -> tuple[None, None]:
        """None for the mask, which is a weight of 1 everywhere, and None for the state."""
        return None, None
