"""Where regions lie on a canvas: hard or soft areas of boxes and mask pictures, and the shares of their texts.

Everything is float32 on the CPU, in an order that neither devices nor the number of ranks can change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Axis, Canvas

LEVELS = 2**16  # of an area; sums of such numbers are exact, so areas that complete each other leave nothing


def area_of_box(box: Sequence[float], canvas: Canvas) -> Tensor:
    """Return 1 at the cells whose centre lies in a box or on its edge, Float32[Tensor, "height width"], no padding.

    Two boxes with a common edge share the cells whose centre it crosses, so that mirrored boxes cover mirrored cells.

    Args:
        box: Left, top, right and bottom, as shares of the picture.
        canvas: The canvas.
    """
    left, top, right, bottom = box
    rows = _inside(canvas.inner[0], canvas.cell / canvas.picture[0], top, bottom)
    cols = _inside(canvas.inner[1], canvas.cell / canvas.picture[1], left, right)
    return rows[:, None] * cols


def _inside(count: int, cell: float, begin: float, end: float) -> Tensor:
    """Return 1 for the cells of an axis whose centre lies in [begin, end], Float32[Tensor, "count"].

    Args:
        count: Number of cells.
        cell: Share of a cell in the picture's side; the last cell may exceed the picture.
        begin: Share where the box begins.
        end: Share where it ends.
    """
    import torch

    centres = [min(1.0, (i + 0.5) * cell) for i in range(count)]
    return torch.tensor([float(begin <= c <= end) for c in centres], dtype=torch.float32, device="cpu")


def area_of_mask(mask: Tensor, canvas: Canvas) -> Tensor:
    """Return a mask picture's mean in every cell, Float32[Tensor, "height width"], no padding.

    Args:
        mask: Values in [0, 1], Float32[Tensor, "Height Width"] of any size; it is stretched over the picture.
        canvas: The canvas.
    """
    import torch.nn.functional as F

    return F.adaptive_avg_pool2d(mask[None, None], canvas.inner)[0, 0]


def feathered(area: Tensor, feather: float, canvas: Canvas) -> Tensor:
    """Return an area's mean over a square around every cell: edges become linear ramps, centred where they were.

    Beyond the picture the edge is repeated, so an area that reaches a border does not fade there; where edges meet it
    goes on across them. Two areas that add up to one still do.

    Args:
        area: Float32[Tensor, "height width"], no padding.
        feather: Side of the square, as a share of the picture's shorter side; up to one cell nothing is softened.
        canvas: The canvas.
    """
    width = feather * min(canvas.picture) / canvas.cell  # in cells
    for dim, axis in ((0, "y"), (1, "x")) if width > 1 else ():
        area = _smoothed(area, dim, width, canvas, axis)  # type: ignore[arg-type]
    return (area.clamp(0, 1) * LEVELS).round() / LEVELS


def _smoothed(area: Tensor, dim: int, width: float, canvas: Canvas, axis: Axis) -> Tensor:
    """Return the mean over ``width`` cells of one axis; slices are added up, so that no device sums otherwise."""
    reach = math.ceil((width - 1) / 2)
    end = (width - (2 * reach - 1)) / 2  # weight of the two outer cells, of which a part is covered
    length = area.shape[dim]
    total = area.new_zeros(area.shape)
    for shift in range(-reach, reach + 1):
        beyond = [i + shift for i in range(length)]
        cells = [i % length if canvas.wraps(axis) else min(max(i, 0), length - 1) for i in beyond]
        weight = end if abs(shift) == reach else 1.0
        total = total + weight * area.index_select(dim, area.new_tensor(cells).long())
    return total / width


def shares_of(areas: Tensor, weights: Sequence[float], canvas: Canvas) -> Tensor:
    """Return the share of every text in every cell, the run's own first; they add up to one.

    Regions together take min(1, sum of areas), divided among them by weight times area; the rest is the run's prompt:
    the masks of MultiDiffusion's region-based generation (Bar-Tal et al., 2023, https://arxiv.org/abs/2302.08113, sec.
    4.2), normalised.

    Args:
        areas: As ``feathered`` returns them, Float32[Tensor, "regions height width"], no padding, in canonical order.
        weights: Of the regions.
        canvas: Its padding repeats the edge.

    Returns:
        Float32[Tensor, "regions+1 height width"] of the canvas, padding included.
    """
    import torch
    import torch.nn.functional as F

    covered = torch.zeros_like(areas[0])
    total = torch.zeros_like(areas[0])
    for area, weight in zip(areas, weights, strict=True):
        covered, total = covered + area, total + weight * area
    covered = covered.clamp(max=1)
    parts = [1 - covered]
    for area, weight in zip(areas, weights, strict=True):
        parts.append(torch.where(area > 0, covered * (weight * area / total), torch.zeros_like(area)))
    edged = F.pad(torch.stack(parts)[None], (0, canvas.pad_width, 0, canvas.pad_height), mode="replicate")
    return edged[0]
