"""Resizing a picture whose edges meet: continued by what lies across them, resized, and cropped, so without a seam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.run_config import Wrap


@frozen
class Continuation:
    """How far a picture is continued at either end of its axes; by nothing where edges do not meet.

    Attributes:
        before: Height and width of the continued picture.
        after: Height and width of the continued picture when it is resized.
        margins: Pixels at either end of the axes before resizing.
        crops: Pixels at either end of the axes after it.
    """

    before: tuple[int, ...] = field(converter=as_tuple)
    after: tuple[int, ...] = field(converter=as_tuple)
    margins: tuple[int, ...] = field(converter=as_tuple)
    crops: tuple[int, ...] = field(converter=as_tuple)

    @classmethod
    def of(cls, size: Sequence[int], wanted: Sequence[int], wrap: Wrap, reach: int) -> Continuation:
        """Return the fewest pixels, ``reach`` or more, with which both sizes stay whole pixels.

        Args:
            size: Height and width of the picture.
            wanted: Height and width of the resized picture.
            wrap: Axes whose ends meet.
            reach: Pixels that a pixel of the result depends on, on one side.
        """
        margins, crops = [], []
        for axis, length, longer in zip("yx", size, wanted, strict=True):
            unit = length // math.gcd(length, longer)
            margins.append(-(-reach // unit) * unit if axis in wrap else 0)
            crops.append(margins[-1] * longer // length)
        before = [length + 2 * margin for length, margin in zip(size, margins, strict=True)]
        after = [length + 2 * crop for length, crop in zip(wanted, crops, strict=True)]
        return cls(before, after, margins, crops)

    def extend(self, values: Tensor) -> Tensor:
        """Return the continued picture, Float[Tensor, "batch channels *before"]; a margin may exceed the picture."""
        import torch

        for axis, margin in zip((-2, -1), self.margins, strict=True):
            if margin:
                length = values.shape[axis]
                order = torch.arange(-margin, length + margin, dtype=torch.int64, device=values.device) % length
                values = values.index_select(axis, order)
        return values

    def crop(self, values: Tensor) -> Tensor:
        """Return the resized picture without what continued it, Float[Tensor, "batch channels *wanted"]."""
        (top, left), (height, width) = self.crops, self.after
        return values[..., top : height - top, left : width - left]
