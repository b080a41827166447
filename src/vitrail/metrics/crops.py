"""Feature extraction for metrics of sets: whole pictures, or crops at positions that depend on the size only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalFeatureExtractor
from vitrail.core.method.metric import Features, Shown
from vitrail.core.method.returned_measures import Vectors, vectors_of
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.metrics.judge_features import JUDGE

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class CropFeatures:
    """Extract a network's features or class probabilities from a picture, or from crops of it.

    Attributes:
        features: The network.
        crops: Crops per picture; 0 takes the whole picture.
        crop_size: Side of a crop in pixels; 0 is the model's training size.
        seed: Of the crops' positions.
        kind: The method of ``features`` to call.
    """

    features: Features
    crops: int
    crop_size: int
    seed: int
    kind: Vectors

    @property
    def digest(self) -> str:
        """Digest of the features' files; empty if they have none."""
        return OptionalFeatureExtractor.of(self.features).digest

    def look(self, shown: Shown) -> Tensor:
        """Return features or probabilities of the crops, or of the whole picture as one, Float32[Tensor, "crops dim"].

        Raises:
            ConfigError: If a crop does not fit in the picture, or neither ``crop_size`` nor the picture gives its size.
        """
        import torch

        picture = shown.picture.float()
        if self.crops:
            side = self._side(shown)
            height, width = picture.shape[-2:]
            spots = places(height, width, side, self.crops, self.seed)
            pieces = torch.stack([picture[:, y : y + side, x : x + side] for y, x in spots])
        else:
            pieces = picture[None]
        return vectors_of(StrategyCall("features", self.features), self.features, self.kind, pieces).cpu()

    def _side(self, shown: Shown) -> int:
        return self.crop_size or shown.training_size("set crop_size")


@frozen(kw_only=True)
class OfSets:
    """Options shared by metrics of sets."""

    features: Features = JUDGE  # network whose features are compared
    crops: int = field(default=0, validator=v.ge(0))  # crops per picture; 0 takes the whole picture
    crop_size: int = field(default=0, validator=v.ge(0))  # side of a crop in pixels; 0 is the model's training size
    seed: int = 0  # of the crops' positions, which are the same in all pictures of a size

    def seeing(self, kind: Vectors) -> CropFeatures:
        """Return the feature extractor with these options; ``kind`` is the method of ``features`` that it calls."""
        return CropFeatures(
            features=self.features, crops=self.crops, crop_size=self.crop_size, seed=self.seed, kind=kind
        )

    def titled(self, name: str) -> str:
        """Append ``_c`` to a column's name if it is measured on crops."""
        return f"{name}_c" if self.crops else name


def places(height: int, width: int, side: int, count: int, seed: int) -> tuple[tuple[int, int], ...]:
    """Return the top and left pixel of each crop, uniform over the positions inside the picture.

    Args:
        height: Of the picture in pixels.
        width: Of the picture in pixels.
        side: Of a crop in pixels.
        count: Number of crops.
        seed: Of the draw, which depends on the four sizes besides.

    Raises:
        ConfigError: If a crop is larger than the picture.
    """
    import torch

    if side > min(height, width):
        raise ConfigError(
            f"a crop of {side} pixels does not fit in a picture of {height}x{width}; choose a smaller crop_size"
        )
    generator = Streams(seed).generator("crops", height, width, side)
    drawn = torch.rand(count, 2, generator=generator, dtype=torch.float32, device="cpu")
    free = drawn.new_tensor([height - side + 1, width - side + 1])
    return tuple((int(y), int(x)) for y, x in (drawn * free).long().tolist())
