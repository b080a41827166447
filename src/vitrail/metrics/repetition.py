"""Repetition of content within a picture, measured by classifying disjoint tiles.

Tiles of the model's training size, overlapping by half, are classified. The agreement of two disjoint tiles is the
probability that both show the same class, ``sum over classes of p q``, where the class of no object is left out. The
same is done with tiles twice as large, and so on up to half the picture, since copies may be larger than a view. One
large object gives low values, since its parts are classified with less confidence, and a plain background gives 0,
since it shows no object. Cosines of features, centred or not, separated less, since backgrounds are alike everywhere.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalFeatureExtractor
from vitrail.core.method.metric import Column, FeatureExtractor, Features, Shown
from vitrail.core.method.returned_measures import vectors_of
from vitrail.metrics.judge_features import JUDGE

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8  # tiles per forward pass


@frozen(kw_only=True)
class Repetition:
    """Agreement of a picture's disjoint tiles on the class they show: maximum and mean over pairs of tiles.

    Each is the maximum over all sizes of tiles. Nan for pictures with no side of twice the training size. The last
    class of the features stands for no object and does not count.
    """

    needs_reference: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="repeated", better="down", lowest=0.0, highest=1.0),
        Column(name="repeated, mean", better="down", lowest=0.0, highest=1.0),
    )
    features: Features = JUDGE  # network that classifies tiles

    @property
    def extractor(self) -> FeatureExtractor:
        """The metric is its own feature extractor."""
        return self

    @property
    def digest(self) -> str:
        """Digest of the features' files; empty if they have none."""
        return OptionalFeatureExtractor.of(self.features).digest

    def look(self, shown: Shown) -> Tensor:
        """Return the largest and the mean agreement of two disjoint tiles, Float32[Tensor, "2"] in [0, 1], or nan."""
        import torch

        sides = sides_of_tiles(
            shown.training_size("it is what `repetition` cuts tiles of"), max(shown.picture.shape[-2:])
        )
        if not sides:
            return torch.tensor([math.nan, math.nan], dtype=torch.float32, device="cpu")
        return torch.stack([self._agreement(shown.picture, each) for each in sides]).amax(dim=0)

    def _agreement(self, picture: Tensor, side: int) -> Tensor:
        """Largest and mean agreement for tiles of one size in pixels, Float32[Tensor, "2"]."""
        import torch

        height, width = picture.shape[-2:]
        spots = list(product(starts(height, side), starts(width, side)))
        place = torch.tensor(spots, dtype=torch.int64, device=picture.device)
        apart = (place[:, None] - place).abs().amax(dim=-1) >= side
        tiles = [picture[:, y : y + side, x : x + side] for y, x in spots]
        batches = [torch.stack(tiles[first : first + BATCH]) for first in range(0, len(tiles), BATCH)]
        asked = StrategyCall("features", self.features)
        seen = [vectors_of(asked, self.features, "probabilities", batch).cpu() for batch in batches]
        known = torch.cat(seen)[:, :-1]
        agreement = (known @ known.T)[apart]
        return torch.stack([agreement.max(), agreement.mean()])

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the means over the pictures that are large enough; nan if there are none."""
        return tuple(features.nanmean(dim=0).tolist())


def sides_of_tiles(side: int, longer: int) -> list[int]:
    """Return the sizes of tiles in pixels: the training size and its doublings, up to half of the longer side.

    Half of the longer side is always the last one; there are none if it is below the training size.

    Args:
        side: The model's training size in pixels.
        longer: Longer side of the picture in pixels.
    """
    largest = longer // 2
    doubled = [side * 2**octave for octave in range(longer.bit_length())]
    return [*(each for each in doubled if each < largest), largest] if side <= largest else []


def starts(length: int, side: int) -> tuple[int, ...]:
    """Return the first pixels of tiles along an axis: at most half a tile apart, from edge to edge, at least one tile.

    Args:
        length: Of the picture along the axis, in pixels.
        side: Of a tile, in pixels.
    """
    free = max(0, length - side)
    steps = math.ceil(2 * free / side)
    return tuple(round(free * step / steps) for step in range(steps + 1)) if steps else (0,)
