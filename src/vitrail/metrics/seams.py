"""Seams in pictures: intensity steps across the borders of views that are larger than those across nearby lines.

The logarithm of the step at a border is compared with the mean logarithm of the steps at parallel lines up to 32
pixels away. Without seams the expected difference is 0 whatever a picture shows, since a border is then a line like
the others; and an edge of the content that happens to lie along one line has little weight.
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

REACH = 32  # pixels to either side of a border within which lines are compared with it
BLUR = 2  # pixels beyond the width that a border's own step may spread to
FEWEST = 8  # minimum number of lines to compare with
FAINT = 0.25 / 255  # added to every step, so that rounding in flat pictures makes no seams


@frozen(kw_only=True)
class Seams:
    """Ratio of the steps across the borders of views to the steps beside them; 1 means no seam, nan no borders.

    Close to 1 for views that overlap and are averaged.
    """

    needs_reference: ClassVar[bool] = False
    width: int = field(default=1, validator=v.ge(1))  # pixels averaged on either side of a line; more for soft seams
    grid: bool = False  # measure at multiples of the training size instead of at the views' borders, to compare methods

    @property
    def columns(self) -> tuple[Column, ...]:
        """One column: seams, or grid seams if ``grid``."""
        return (Column(name="grid seams" if self.grid else "seams", better="down", lowest=0.0),)

    @property
    def extractor(self) -> FeatureExtractor:
        """The metric is its own feature extractor."""
        return self

    def look(self, shown: Shown) -> Tensor:
        """Return the mean log ratio over the picture's borders, Float32[Tensor, "1"]; nan without borders."""
        picture, found = shown.picture.float(), []
        period = shown.training_size("leave `grid` out") if self.grid else 0
        for plane, borders in ((picture, shown.rows), (picture.transpose(1, 2), shown.columns)):
            chosen = tuple(range(period, plane.shape[1], period)) if period else borders
            found += contrasts(steps(plane, self.width), chosen, self.width)
        return picture.new_tensor([sum(found) / len(found) if found else math.nan], device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the geometric mean over the pictures with borders; nan if there are none."""
        return (features.nanmean().exp().item(),)


def steps(picture: Tensor, width: int) -> Tensor:
    """Compute the difference of the two sides of each line between rows.

    Args:
        picture: Float32[Tensor, "3 Height Width"].
        width: Rows averaged on either side.

    Returns:
        Mean absolute difference across the line above row i, Float32[Tensor, "Height"]; nan closer than ``width`` to an
        edge.
    """
    import torch.nn.functional as F

    means = F.avg_pool2d(picture[None], (width, 1), stride=1)[0]
    sizes = (means[:, width:] - means[:, :-width]).abs().mean(dim=(0, 2))
    return F.pad(sizes, (width, width - 1), value=math.nan)


def contrasts(sizes: Tensor, borders: Sequence[int], width: int) -> list[float]:
    """Compute the log of each border's step less the mean log of the steps beside it.

    Borders outside of the picture or with fewer than ``FEWEST`` lines to compare with are left out.

    Args:
        sizes: Result of ``steps``, Float32[Tensor, "Height"].
        borders: First row after each border.
        width: Rows averaged on either side, as for ``steps``.
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
