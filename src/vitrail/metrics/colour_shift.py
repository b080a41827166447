"""Difference of a set of pictures from a reference set in mean colour and contrast."""

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

    Colours are averaged over the set, so opposite shifts of single pictures cancel. A positive contrast shift means
    more contrast than the reference.
    """

    needs_reference: ClassVar[bool] = True
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="colour shift", better="down", decimals=1, lowest=0.0),
        Column(name="contrast shift", decimals=1),
    )

    @property
    def extractor(self) -> FeatureExtractor:
        """The metric is its own feature extractor."""
        return self

    def look(self, shown: Shown) -> Tensor:
        """Return mean red, green, blue and the standard deviation of the greys, in 1/255, Float32[Tensor, "4"]."""
        import torch

        picture = 255 * shown.picture.float()
        return torch.cat([picture.mean(dim=(1, 2)), picture.mean(0).std(correction=0)[None]]).cpu()

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the root mean square difference of the three mean colours and the difference of the mean contrasts.

        Raises:
            ConfigError: If there is no reference set.
        """
        off = features.mean(dim=0) - compared(reference, "colour-shift").mean(dim=0)
        return off[:3].square().mean().sqrt().item(), off[3].item()
