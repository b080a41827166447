"""Whether pictures have seams: steps from one side to the other that are larger at the borders of views than beside.

The step at a border is set against those at lines parallel to it, up to 32 pixels away, by the mean of logarithms. So
without seams its expectation is 0 whatever a picture shows, for a border is then a line like the others; and an edge
of the content that happens to lie along one line counts little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.metric import Column, FeatureExtractor, Shown

if TYPE_CHECKING:
    from torch import Tensor

REACH = 32  # pixels to either side of a border that are like it but for the seam
BLUR = 2  # pixels beyond the width that a border's own step may spread to
FEWEST = 8  # lines to compare with
FAINT = 0.25 / 255  # added to every step, so that flat pictures have no seams of rounding


@frozen(kw_only=True)
class Seams:
    """Steps across the borders of views over steps beside them; 1 is no seam.

    Where views have no borders, or overlap and are averaged, there is little to see; nan without borders.
    """

    needs_reference: ClassVar[bool] = False
    width: int = field(
        default=1, validator=v.ge(1)
    )  # pixels on either side that a step lies between; more for soft seams
    grid: bool = False  # look at multiples of the training size whatever the views are, to compare methods

    @property
    def columns(self) -> tuple[Column, ...]:
        """One; of its own name on a grid."""
        return (Column(name="grid seams" if self.grid else "seams", better="down", lowest=0.0),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself."""
        return self

    def look(self, shown: Shown) -> Tensor:
        """Mean logarithm of the ratio over the picture's borders, Float32[Tensor, "1"]."""
        picture, found = shown.picture.float(), []
        for plane, borders in ((picture, shown.rows), (picture.transpose(1, 2), shown.columns)):
            chosen = tuple(range(shown.native_size, plane.shape[1], shown.native_size)) if self.grid else borders
            found += contrasts(steps(plane, self.width), chosen, self.width)
        return picture.new_tensor([sum(found) / len(found) if found else math.nan], device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The geometric mean over the pictures that have borders."""
        return (features.nanmean().exp().item(),)


def steps(picture: Tensor, width: int) -> Tensor:
    """How different the two sides of each line between rows are.

    Args:
        picture: Float32[Tensor, "3 Height Width"].
        width: Rows on either side whose mean counts.

    Returns:
        Mean absolute difference above row i, Float32[Tensor, "Height"]; nan too near to the edges.
    """
    import torch.nn.functional as F

    means = F.avg_pool2d(picture[None], (width, 1), stride=1)[0]
    sizes = (means[:, width:] - means[:, :-width]).abs().mean(dim=(0, 2))
    return F.pad(sizes, (width, width - 1), value=math.nan)


def contrasts(sizes: Tensor, borders: Sequence[int], width: int) -> list[float]:
    """Logarithm of the step at each border over the steps beside it; borders with too few lines beside are left out.

    Args:
        sizes: From ``steps``.
        borders: The first row after each.
        width: As for ``steps``.
    """
    import torch

    logs = (sizes.cpu() + FAINT).log()
    rows = torch.arange(len(sizes), dtype=torch.int64, device=logs.device)
    clear = torch.ones_like(rows, dtype=torch.bool)
    for border in borders:
        clear &= (rows - border).abs() > width + BLUR
    found = []
    for border in borders:
        beside = logs[clear & ((rows - border).abs() <= REACH) & ~logs.isnan()]
        if 0 < border < len(rows) and len(beside) >= FEWEST and not logs[border].isnan():
            found.append(float(logs[border] - beside.mean()))
    return found
