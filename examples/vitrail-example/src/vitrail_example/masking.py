"""Two mask sources of the whole canvas: a soft disc in its middle, and a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.config.paths import expanded
from vitrail.errors import ConfigError
from vitrail.pictures.picture_files import open_picture

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class Center:
    """Guidance acts in a soft disc in the middle, where most pictures have their object."""

    needs: ClassVar[frozenset[str]] = frozenset()
    knows_whole: ClassVar[bool] = True  # so it serves windows and guidance of the canvas, too
    radius: float = field(default=0.7, validator=v.gt(0))  # of the middle of the edge, in half sides of the picture
    softness: float = field(default=0.4, validator=v.gt(0))  # width of the edge, in half sides

    @property
    def request(self) -> None:
        """No attention maps."""
        return None

    def init(self) -> None:
        """No state."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: None) -> tuple[Tensor, None]:
        """The same disc at every step, Float32[Tensor, "batch 1 height width"]; the padding lies beyond the edge."""
        sides = zip(predicted.view.shape, predicted.inner, strict=True)
        ys, xs = (key.latents.new_tensor([(2 * i + 1) / n - 1 for i in range(count)]) for count, n in sides)
        distance = (ys[:, None].square() + xs.square()).sqrt()
        disc = ((self.radius - distance) / self.softness + 0.5).clamp(0, 1)
        return disc.expand(len(key.latents), 1, -1, -1), None


@frozen(kw_only=True)
class PictureMask:
    """Guidance acts where a grey picture is white."""

    needs: ClassVar[frozenset[str]] = frozenset()
    knows_whole: ClassVar[bool] = True
    path_options: ClassVar[tuple[str, ...]] = ("path",)  # a relative one lies beside the method's file
    path: str = field(validator=v.instance_of(str))  # picture of any mode and size; it is stretched over the canvas

    @property
    def request(self) -> None:
        """No attention maps."""
        return None

    def check(self) -> None:
        """Asked before anything is loaded, by `vitrail check`, too."""
        try:
            open_picture(self.path)
        except ConfigError as error:
            raise ConfigError(f"path: {error}") from error

    def digest(self) -> str:
        """Part of recipes and of the addresses of an experiment's cells: another picture is another mask."""
        return digest_of_files([expanded(self.path)])

    def init(self) -> None:
        """No state."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: None) -> tuple[Tensor, None]:
        """The same mask at every step, Float32[Tensor, "batch 1 height width"]; the padding repeats its edge."""
        import torch.nn.functional as F
        from PIL import Image

        (height, width), (down, right) = predicted.view.shape, predicted.inner
        grey = open_picture(self.path, quiet=True).convert("L").resize((right, down), Image.Resampling.BILINEAR)
        inner = key.latents.new_tensor(list(grey.tobytes())).view(1, 1, down, right) / 255
        mask = F.pad(inner, (0, width - right, 0, height - down), mode="replicate")
        return mask.expand(len(key.latents), -1, -1, -1), None
