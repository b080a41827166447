"""Sharpness of pictures, by their Laplacian."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.metric import Column, FeatureExtractor, Shown
from vitrail.metrics.judge_features import detections, digest_of_judge

if TYPE_CHECKING:
    from torch import Tensor

REACH = 0.55  # of a detection's size: half the side of its box, with a margin
Boxes = Literal["none", "judge"]


@frozen(kw_only=True)
class Sharpness:
    """Mean absolute Laplacian of the grey picture, in 1/255; separately for background and objects with judge's boxes.

    Noise counts as sharp, so neither direction is better by itself. Compare with reference pictures of the same size.
    """

    needs_reference: ClassVar[bool] = False
    boxes: Boxes = field(
        default="none", validator=v.in_(("none", "judge"))
    )  # separates objects from background; "judge" detects the demo model's objects

    @property
    def columns(self) -> tuple[Column, ...]:
        """One column for the whole picture, or two for background and objects."""
        names = ("sharp", "sharp object") if self.boxes == "judge" else ("sharp",)
        return tuple(Column(name=name, decimals=1, lowest=0.0) for name in names)

    @property
    def extractor(self) -> FeatureExtractor:
        """The metric is its own feature extractor."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 digest of the judge's files if ``boxes`` is "judge", else empty."""
        return digest_of_judge() if self.boxes == "judge" else ""

    def look(self, shown: Shown) -> Tensor:
        """Return the columns of one picture, Float32[Tensor, "columns"]; nan where it has no such pixels."""
        import torch

        sharp = 255 * laplacian(shown.picture.float().mean(0)).abs()
        if self.boxes == "none":
            return sharp.mean()[None].cpu()
        inside = torch.zeros_like(sharp, dtype=torch.bool)
        for each in detections(shown):
            half = REACH * each.size
            top, left = (max(0, int(middle - half)) for middle in (each.center_y, each.center_x))
            inside[top : int(each.center_y + half), left : int(each.center_x + half)] = True
        return torch.stack([sharp[~inside].mean(), sharp[inside].mean()]).cpu()

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the means over the pictures with such pixels."""
        return tuple(features.nanmean(dim=0).tolist())


def laplacian(plane: Tensor) -> Tensor:
    """Compute 4 times each inner pixel less its 4 neighbours, Float32[Tensor, "Height-2 Width-2"], unnormalised."""
    return (
        4 * plane[1:-1, 1:-1] - plane[:-2, 1:-1] - plane[2:, 1:-1] - plane[1:-1, :-2] - plane[1:-1, 2:]
    )  # reaches no edge
