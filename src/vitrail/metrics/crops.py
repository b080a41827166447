"""What metrics of sets look at: whole pictures, or crops at places that depend on the picture's size only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.members import OptionalFeatureExtractor
from vitrail.core.method.metric import Features, Shown
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.metrics.judge_features import JUDGE

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["extract", "probabilities"]


@frozen(kw_only=True)
class CropFeatures:
    """Looks at a picture, or at crops of it, by a network's features."""

    features: Features
    crops: int
    crop_size: int
    seed: int
    kind: Kind

    @property
    def digest(self) -> str:
        """Of the features, if they have one."""
        return OptionalFeatureExtractor.of(self.features).digest

    def look(self, shown: Shown) -> Tensor:
        """Features or probabilities of the crops or of the whole, Float32[Tensor, "crops dim"].

        Raises:
            ConfigError: If a crop does not fit in the picture, or nobody says how large it is.
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
        return getattr(self.features, self.kind)(pieces).float().cpu()  # type: ignore[no-any-return]

    def _side(self, shown: Shown) -> int:
        if not (self.crop_size or shown.native_size):
            raise ConfigError(
                "crops are of the size that a model was trained at, and a picture of a folder has none: set crop_size"
            )
        return self.crop_size or shown.native_size


@frozen(kw_only=True)
class OfSets:
    """Options that metrics of sets share."""

    features: Features = JUDGE  # what pictures are compared by
    crops: int = field(default=0, validator=v.ge(0))  # of a picture; 0 looks at the whole
    crop_size: int = field(default=0, validator=v.ge(0))  # pixels of a side; 0 is the size the model was trained at
    seed: int = 0  # of the crops' places, which are the same in all pictures of a size

    def seeing(self, kind: Kind) -> CropFeatures:
        """An eye with these options."""
        return CropFeatures(
            features=self.features, crops=self.crops, crop_size=self.crop_size, seed=self.seed, kind=kind
        )

    def titled(self, name: str) -> str:
        """A column's name, marked if it is one of crops."""
        return f"{name}_c" if self.crops else name


def places(height: int, width: int, side: int, count: int, seed: int) -> tuple[tuple[int, int], ...]:
    """Top and left pixel of each crop, uniform over the places that lie inside.

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
