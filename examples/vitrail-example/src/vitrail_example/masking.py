"""A mask source that looks at nothing: a soft disc in the middle of the key view."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.prediction import Prediction
    from vitrail.core.protocols import Predicted
    from vitrail.core.step import Step


@frozen(kw_only=True)
class Center:
    """Guidance acts in a soft disc in the middle, where most pictures have their object."""

    needs: ClassVar[frozenset[str]] = frozenset()
    radius: float = field(default=0.7, validator=v.gt(0))  # of the middle of the edge, in half sides of the view
    softness: float = field(default=0.4, validator=v.gt(0))  # width of the edge, in half sides

    @property
    def request(self) -> None:
        """No attention maps."""
        return None

    def init(self) -> None:
        """No state."""

    def mask(self, step: Step, key: Prediction, predicted: Predicted, state: None) -> tuple[Tensor, None]:
        """The same disc at every step, Float32[Tensor, "batch 1 h w"]."""
        batch, _, height, width = key.latents.shape
        ys, xs = (key.latents.new_tensor([(2 * i + 1) / n - 1 for i in range(n)]) for n in (height, width))
        distance = (ys[:, None].square() + xs.square()).sqrt()
        disc = ((self.radius - distance) / self.softness + 0.5).clamp(0, 1)
        return disc.expand(batch, 1, height, width), None
