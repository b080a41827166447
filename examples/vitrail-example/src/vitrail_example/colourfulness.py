"""A metric of pictures: how colourful they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.metric import Column, FeatureExtractor, Shown

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Colourfulness:
    """Spread and mean of the opponent colours (Hasler and Suesstrunk, 2003, sec. 7), in 1/255; 0 is grey."""

    needs_reference: ClassVar[bool] = False
    weight: float = field(default=0.3, validator=v.ge(0))  # of the means

    @property
    def columns(self) -> tuple[Column, ...]:
        """One."""
        return (Column(name="colourful", decimals=1),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself: what it sees of a picture is its number."""
        return self

    def look(self, shown: Shown) -> Tensor:
        """The number of one picture, Float32[Tensor, "1"]."""
        red, green, blue = 255 * shown.picture
        opponents = [red - green, (red + green) / 2 - blue]
        spread = sum(each.var(correction=0) for each in opponents) ** 0.5
        mean = sum(each.mean() ** 2 for each in opponents) ** 0.5
        return (spread + self.weight * mean)[None]

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Its mean over the pictures."""
        return (features.mean().item(),)
