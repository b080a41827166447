"""Where in a picture the object of its prompt lies, found with the drawing that it was learned from.

The demo model's objects are always the same drawing, so an object that is whole is that drawing at some place and size.
The judge says about where it is; of the places and sizes nearby the one is taken at which most of the drawing is there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.core.method.metric import Shown
from vitrail.metrics.foreground import FAIR, STRIDE, WINDOW, unlikeness
from vitrail.metrics.judge_features import detections, load_judge
from vitrail.metrics.objects import subject_of

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.demo.judge import Detection

GRID = 32  # points along a side of the drawing
MARGIN = 1.25  # sides of the square that is looked at, over the drawing's
ALIKE = 0.22  # Euclidean distance of colours in [0, 1] that still counts as the drawing's
SIZES = (0.8, 0.87, 0.93, 1.0, 1.07, 1.15, 1.25)  # of the judge's
SHIFTS = (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15)  # of its size, down and right
FINE_SIZES = (0.97, 1.0, 1.03)
FINE_SHIFTS = (-0.025, 0.0, 0.025)
OPAQUE = 0.5


@frozen(eq=False)
class SpriteMatch:
    """The place of the drawing that explains a picture best.

    Attributes:
        name: The drawing's.
        size: Pixels of its side.
        center_y: Pixels.
        center_x: Pixels.
        whole: Share of the points of the drawing or of a piece around it at which the drawing is there, in [0, 1].
    """

    name: str
    size: float
    center_y: float
    center_x: float
    whole: float


@functools.lru_cache(maxsize=64)
def _drawing(name: str) -> tuple[Tensor, Tensor]:
    """Colours and opacity on the grid, in the middle of its square; "3 grid grid" and Bool "grid grid"."""
    import torch

    from vitrail.demo.scenes import Placement, paste

    middle = Placement(name, 1 / MARGIN, 0.5, 0.5)
    blank = torch.zeros(3, GRID, GRID, dtype=torch.float32, device="cpu")
    over_black, over_white = paste(blank, middle), paste(blank + 1, middle)
    opacity = 1 - (over_white - over_black).mean(dim=0)
    return over_black / opacity.clamp(min=0.1), opacity > OPAQUE


def match_of(shown: Shown) -> SpriteMatch | None:
    """The best place of the prompt's object; None if the prompt names none or the judge finds nothing at all.

    The judge's largest object is the one that is looked at, whatever the judge takes it for.
    """
    name = subject_of(shown.prompt, load_judge(str(shown.picture.device)).config.classes)
    largest = max(detections(shown), key=lambda each: each.size, default=None)
    return None if name is None or largest is None else best_match(shown, name, largest)


def best_match(shown: Shown, name: str, near: Detection) -> SpriteMatch:
    """The place near a detection at which most of a drawing is there.

    Args:
        shown: The picture.
        name: The drawing's.
        near: About where and how large.
    """
    tried = _places(near.size, near.center_y, near.center_x, SHIFTS, SIZES)
    first = _best(shown, name, tried)
    return _best(shown, name, _places(first.size, first.center_y, first.center_x, FINE_SHIFTS, FINE_SIZES))


def _best(shown: Shown, name: str, places: Tensor) -> SpriteMatch:
    """The best of some places, Float32[Tensor, "places 3"]: size, middle's y and middle's x, in pixels."""
    import torch
    import torch.nn.functional as F

    picture = shown.picture.float().cpu()
    color, opaque = _drawing(name)
    side = float(places[0, 0]) * MARGIN
    scale = min(1.0, GRID / side)
    there = ((_squares(_resized(picture, scale), places * scale) - color).norm(dim=1) < ALIKE) & opaque
    stray, differs = torch.zeros_like(there), unlikeness(shown)
    if differs is not None:  # what sticks out of the drawing, further than a cell reaches, is none of it
        reach = 2 * math.ceil(WINDOW / 2 * GRID / side) + 1
        near = F.max_pool2d(opaque[None, None].float(), reach, 1, reach // 2)[0, 0] > 0
        in_cells = places / STRIDE - places.new_tensor([0.0, 0.5, 0.5])
        stray = (_squares(differs[None], in_cells)[:, 0] > FAIR) & ~near
    whole = there.sum(dim=(1, 2)).float() / (opaque | stray).sum(dim=(1, 2)).float()  # else of the ambient dtype
    best = int(whole.argmax())
    size, y, x = places[best].tolist()
    return SpriteMatch(name, size, y, x, float(whole[best]))


def _places(size: float, y: float, x: float, shifts: Sequence[float], sizes: Sequence[float]) -> Tensor:
    """Places around one, in pixels, Float32[Tensor, "places 3"]."""
    import torch

    tried = [(size * much, y + down * size, x + right * size) for much in sizes for down in shifts for right in shifts]
    return torch.tensor(tried, dtype=torch.float32, device="cpu")


def _resized(picture: Tensor, scale: float) -> Tensor:
    import torch.nn.functional as F

    if scale == 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[-2:]]
    return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]


def _squares(plane: Tensor, places: Tensor) -> Tensor:
    """What lies in some squares, a margin around them, on the drawing's grid.

    Args:
        plane: Float32[Tensor, "channels rows columns"].
        places: Size, middle's y and x in its pixels, Float32[Tensor, "places 3"].

    Returns:
        Float32[Tensor, "places channels grid grid"]; what lies outside the plane is repeated from its edge.
    """
    import torch
    import torch.nn.functional as F

    size, y, x = (each[:, None] for each in places.unbind(1))
    points = ((torch.arange(GRID, dtype=torch.float32, device="cpu") + 0.5) / GRID - 0.5) * MARGIN
    ys, xs = (2 * (y + size * points) / plane.shape[1] - 1, 2 * (x + size * points) / plane.shape[2] - 1)
    grid = torch.stack([xs[:, None].expand(-1, GRID, -1), ys[:, :, None].expand(-1, -1, GRID)], dim=-1)
    planes = plane[None].expand(len(places), -1, -1, -1)
    return F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
