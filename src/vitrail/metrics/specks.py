"""Stray pieces: what is neither background nor part of an object."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.metric import Column, Shown
from vitrail.metrics.foreground import STRIDE, WINDOW, pieces, unlikeness
from vitrail.metrics.judge_features import ByJudge, detections
from vitrail.metrics.sprite_match import best_match

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.demo.judge import Detection

TRUE = 0.6  # share of the drawing that must be there
INSIDE = 0.8  # of a detection's square: a piece that reaches in there belongs to the object


@frozen(kw_only=True)
class Specks(ByJudge):
    """Pieces of a picture that differ from its background and reach into no object that the judge names.

    Knows the demo model's backgrounds and objects and nothing else; nan for a prompt without a background of theirs.
    """

    columns: ClassVar[tuple[Column, ...]] = (Column(name="specks", better="down", lowest=0.0, is_whole=True),)
    least: int = field(default=3, validator=v.ge(1))  # cells, 4 pixels apart; smaller pieces are noise

    def look(self, shown: Shown) -> Tensor:
        """How many there are, Float32[Tensor, "1"]."""
        import torch

        differs = unlikeness(shown)
        if differs is None:
            return torch.full((1,), math.nan, dtype=torch.float32, device="cpu")
        large = [piece for piece in pieces(differs) if int(piece.sum()) >= self.least]
        named = [_square(each, differs.shape) for each in _objects(shown)]
        stray = sum(not any(bool(piece[square].any()) for square in named) for piece in large)
        return torch.tensor([float(stray)], dtype=torch.float32, device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Mean number a picture."""
        return (features.nanmean().item(),)


def _objects(shown: Shown) -> list[Detection]:
    """Return the largest detection, and those others that the drawing of their name explains.

    To the judge alone a round piece passes for an apple.
    """
    found = sorted(detections(shown), key=lambda each: -each.size)
    return found[:1] + [each for each in found[1:] if best_match(shown, each.name, each).whole >= TRUE]


def _square(found: Detection, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The cells well inside an object's square, one at least."""
    slices = []
    for center, count in zip((found.center_y, found.center_x), shape, strict=True):
        first, last = (round((center + sign * INSIDE * found.size / 2 - WINDOW / 2) / STRIDE) for sign in (-1, 1))
        low = min(max(first, 0), count - 1)
        slices.append(slice(low, max(last, low) + 1))
    return slices[0], slices[1]
