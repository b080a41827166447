"""How far a set of pictures is off a reference set in colour and contrast."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, FeatureExtractor, Shown
from vitrail.metrics.reference_sets import compared

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class ColourShift:
    """Difference of the sets' mean colours, and of their mean contrasts, in 1/255.

    The colour is that of the set as a whole, so pictures that are off in opposite directions cancel. A positive
    contrast is a set of more contrast than the reference.
    """

    needs_reference: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="colour shift", better="down", decimals=1, lowest=0.0),
        Column(name="contrast shift", decimals=1),
    )

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself."""
        return self

    def look(self, shown: Shown) -> Tensor:
        """Mean red, green and blue, and the standard deviation of grey, in 1/255; Float32[Tensor, "4"]."""
        import torch

        picture = 255 * shown.picture.float()
        return torch.cat([picture.mean(dim=(1, 2)), picture.mean(0).std(correction=0)[None]]).cpu()

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Root mean square over the three colours of the means' difference; difference of the mean contrasts."""
        off = features.mean(dim=0) - compared(reference, "colour-shift").mean(dim=0)
        return off[:3].square().mean().sqrt().item(), off[3].item()
