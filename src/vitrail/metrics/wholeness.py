"""Whether the object of a picture is whole, and whether its edges are those of the drawing it was learned from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, Shown
from vitrail.core.schedule.streams import Streams
from vitrail.metrics.foreground import background_of
from vitrail.metrics.judge_features import ByJudge, load_judge
from vitrail.metrics.objects import subject_of
from vitrail.metrics.sprite_match import MARGIN, SpriteMatch, match_of

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 16  # pixels of a side that a distribution of gradients takes


@frozen(kw_only=True)
class Wholeness(ByJudge):
    """How much of the prompt's object is there, and how unlike the true drawing's edges its own are.

    ``whole`` is the share of the drawing, at its best place near the judge's largest object, whose colours are there,
    of the drawing and what sticks out of it: 1 is the drawing itself, 0 where the judge finds nothing. ``edges`` is the
    1-Wasserstein distance between the sizes of the gradients in the object's square and in the same square of the true
    render, over the true mean: 0 is the render itself; soft, ragged and noisy edges all add to it. Knows the demo
    model's objects and nothing else; nan for a prompt without one of them.
    """

    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="whole", better="up", lowest=0.0, highest=1.0),
        Column(name="edges", better="down", lowest=0.0),
    )

    def look(self, shown: Shown) -> Tensor:
        """``whole`` and ``edges`` of one picture, Float32[Tensor, "2"]."""
        import torch

        match = match_of(shown)
        if match is not None:
            answer = (match.whole, edge_distance(shown, match))
        else:  # nothing to look for, or nothing found
            named = subject_of(shown.prompt, load_judge(str(shown.picture.device)).config.classes)
            answer = (math.nan if named is None else 0.0, math.nan)
        return torch.tensor(answer, dtype=torch.float32, device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Means over the pictures that say something."""
        whole, edges = features.nanmean(dim=0).tolist()
        return whole, edges


def edge_distance(shown: Shown, match: SpriteMatch) -> float:
    """The 1-Wasserstein distance of gradients to the true render's; nan without a background or in too small a square.

    Args:
        shown: The picture.
        match: Where its object is.
    """
    background = background_of(shown.prompt)
    if background is None:
        return math.nan
    seen, true = (_square(each, match) for each in (shown.picture.float().cpu(), _render(shown, match, background)))
    if min(seen.shape[-2:]) < FEWEST:
        return math.nan
    seen, true = _gradients(seen), _gradients(true)
    return float((seen.sort().values - true.sort().values).abs().mean() / true.mean())


def _render(shown: Shown, match: SpriteMatch, background: str) -> Tensor:
    from vitrail.demo.scenes import Placement, Scene, render

    height, width = shown.picture.shape[-2:]
    size, y, x = match.size / min(height, width), match.center_y / height, match.center_x / width
    scene = Scene(background, (Placement(match.name, size, y, x),))
    return render(scene, height, width, Streams(0).generator("true render"))


def _square(picture: Tensor, match: SpriteMatch) -> Tensor:
    """What lies around the object, cut at the frame."""
    half = match.size * MARGIN / 2
    rows, columns = (
        slice(max(0, round(center - half)), max(0, round(center + half))) for center in (match.center_y, match.center_x)
    )
    return picture[:, rows, columns]


def _gradients(picture: Tensor) -> Tensor:
    """Length of the gradient at every pixel, over colours and directions, flat."""
    down, right = picture[:, 1:, :-1] - picture[:, :-1, :-1], picture[:, :-1, 1:] - picture[:, :-1, :-1]
    return (down.square() + right.square()).sum(dim=0).sqrt().flatten()
