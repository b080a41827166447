"""How sharp pictures are, by their Laplacian."""

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
    """Mean absolute Laplacian of the grey picture, in 1/255; with the judge's boxes, background and objects apart.

    Noise is sharp, too: neither direction is better by itself. Compare with true pictures of the same size.
    """

    needs_reference: ClassVar[bool] = False
    boxes: Boxes = field(
        default="none", validator=v.in_(("none", "judge"))
    )  # what tells objects from background; "judge" knows the demo model's objects

    @property
    def columns(self) -> tuple[Column, ...]:
        """One of the whole picture, or two."""
        names = ("sharp", "sharp object") if self.boxes == "judge" else ("sharp",)
        return tuple(Column(name=name, decimals=1, lowest=0.0) for name in names)

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself."""
        return self

    @property
    def digest(self) -> str:
        """Of the judge, if it looks with it."""
        return digest_of_judge() if self.boxes == "judge" else ""

    def look(self, shown: Shown) -> Tensor:
        """The columns of one picture, Float32[Tensor, "columns"]; nan where a picture has no such pixel."""
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
        """Means over the pictures that have such pixels."""
        return tuple(features.nanmean(dim=0).tolist())


def laplacian(plane: Tensor) -> Tensor:
    """Four times each inner value less its four neighbours, Float32[Tensor, "Height-2 Width-2"]."""
    return (
        4 * plane[1:-1, 1:-1] - plane[:-2, 1:-1] - plane[2:, 1:-1] - plane[1:-1, :-2] - plane[1:-1, 2:]
    )  # reaches no edge
