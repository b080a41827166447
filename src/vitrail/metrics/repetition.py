"""Whether parts of a picture, a view's size each and apart from each other, show the same thing.

Tiles of the size that the model was trained at, half overlapping, are classified; two tiles that do not overlap agree
by the chance that both show the same class, ``sum over classes of p q``, the class of nothing left out. The same is
done with tiles twice as large, and so on up to half the picture, since copies may be larger than a view. One large
object gives low numbers since its parts are less sure, and a plain background gives none since it shows nothing.
Cosines of features, centred or not, were tried as well: backgrounds are alike everywhere, so they told less.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.members import OptionalFeatureExtractor
from vitrail.core.method.metric import Column, FeatureExtractor, Features, Shown
from vitrail.metrics.judge_features import JUDGE

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8  # tiles that are looked at together


@frozen(kw_only=True)
class Repetition:
    """Agreement of a picture's tiles about what they show: of the two that agree most, and of all pairs on average.

    The larger number of all sizes of tiles. Nan for pictures with no side of twice the training size. The last class
    of the features is that of nothing and does not count.
    """

    needs_reference: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name="repeated", better="down", lowest=0.0, highest=1.0),
        Column(name="repeated, mean", better="down", lowest=0.0, highest=1.0),
    )
    features: Features = JUDGE  # what classifies tiles

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself."""
        return self

    @property
    def digest(self) -> str:
        """Of the features, if they have one."""
        return OptionalFeatureExtractor.of(self.features).digest

    def look(self, shown: Shown) -> Tensor:
        """Largest and mean agreement of two tiles that do not overlap, Float32[Tensor, "2"] in [0, 1]."""
        import torch

        sides = sides_of_tiles(shown.native_size, max(shown.picture.shape[-2:]))
        if not sides:
            return torch.tensor([math.nan, math.nan], dtype=torch.float32, device="cpu")
        return torch.stack([self._agreement(shown.picture, each) for each in sides]).amax(dim=0)

    def _agreement(self, picture: Tensor, side: int) -> Tensor:
        """As ``look``, with tiles of one size."""
        import torch

        height, width = picture.shape[-2:]
        spots = list(product(starts(height, side), starts(width, side)))
        place = torch.tensor(spots, dtype=torch.int64, device=picture.device)
        apart = (place[:, None] - place).abs().amax(dim=-1) >= side
        tiles = [picture[:, y : y + side, x : x + side] for y, x in spots]
        batches = [torch.stack(tiles[first : first + BATCH]) for first in range(0, len(tiles), BATCH)]
        known = torch.cat([self.features.probabilities(batch).float().cpu() for batch in batches])[:, :-1]
        agreement = (known @ known.T)[apart]
        return torch.stack([agreement.max(), agreement.mean()])

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Means over the pictures that are large enough."""
        return tuple(features.nanmean(dim=0).tolist())


def sides_of_tiles(side: int, longer: int) -> list[int]:
    """Doubled from the training size on, and half of the picture's longer side; none if that is smaller."""
    largest = longer // 2
    doubled = [side * 2**octave for octave in range(longer.bit_length())]
    return [*(each for each in doubled if each < largest), largest] if side <= largest else []


def starts(length: int, side: int) -> tuple[int, ...]:
    """Where tiles begin along an axis: at most half a tile apart, from edge to edge; one if there is room for no more.

    Args:
        length: Of the picture, in pixels.
        side: Of a tile.
    """
    free = max(0, length - side)
    steps = math.ceil(2 * free / side)
    return tuple(round(free * step / steps) for step in range(steps + 1)) if steps else (0,)
