"""The latents that a picture begins with: noise, or a picture with the noise of the first step that is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from attrs import frozen

from vitrail.errors import ConfigError
from vitrail.pictures.picture_files import open_picture, pad_picture
from vitrail.pictures.picture_reader import read as read_picture

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.inputs import Extras


@frozen(kw_only=True, eq=False)
class StartLatents:
    """What a run begins with, read before anything is computed.

    Attributes:
        extras: The caller's inputs; ``latents``, and an ``image`` as a picture or as latents.
        backbone: The model.
        from_file: The picture that the run's ``image`` names.
        from_caller: The caller's picture; None if there is none, or it may be latents.
    """

    extras: Extras
    backbone: Backbone
    from_file: Image | None
    from_caller: Image | Tensor | None

    @classmethod
    def read(cls, image: str | None, extras: Extras, backbone: Backbone) -> StartLatents:
        """Read the pictures.

        Args:
            image: File of a picture.
            extras: The caller's inputs.
            backbone: The model.

        Raises:
            ConfigError: If one is no picture.
        """
        file = None if image is None else open_picture(image)
        return cls(extras=extras, backbone=backbone, from_file=file, from_caller=_read(extras.image, backbone))

    def check(self, plan: RunPlan) -> None:
        """Refuse latents or a picture that do not fit the first canvas, before the run is told to have started."""
        shape, latents, picture = self._shape(plan), self.extras.latents, self.extras.image
        if latents is not None and tuple(latents.shape) != shape:
            raise ConfigError(f"latents must be {shape} for this canvas, got {tuple(latents.shape)}")
        given = tuple(getattr(picture, "shape", ()))
        if picture is not None and self.from_caller is None and given != shape:
            raise ConfigError(
                f"image: floats of {given} may be a picture with alpha or latents of another canvas; "
                f"give the picture as Pillow or uint8, or latents of {shape}"
            )

    def latents(self, engine: Engine) -> Tensor:
        """Return the first latents of a picture whose plan was checked, Float32[Tensor, "1 channels height width"]."""
        noise, stepper = self._noise(engine), engine.plan.phases[0].stepper
        picture = self._picture(engine)
        if picture is None:
            return noise * stepper.init_noise_sigma
        return stepper.noised(picture, noise, engine.plan.first)

    def _noise(self, engine: Engine) -> Tensor:
        latents = self.extras.latents
        drawn = engine.streams.normal(self._shape(engine.plan), "initial-latents") if latents is None else latents
        return self._as_canvas(drawn)

    def _picture(self, engine: Engine) -> Tensor | None:
        """Return latents of the picture to start from, if there is one."""
        shape, picture, phase = self._shape(engine.plan), self.extras.image, engine.plan.phases[0]
        if picture is None and self.from_file is None:
            return None
        shown = self.from_file if picture is None else self.from_caller
        if tuple(getattr(picture, "shape", ())) == shape:
            return self._as_canvas(cast("Tensor", picture))
        assert shown is not None  # else it was refused before the run started
        read = self.backbone.read_picture(shown, *phase.picture).float()
        factor = self.backbone.vae_scale_factor
        read = pad_picture(read, factor * phase.canvas.height, factor * phase.canvas.width)
        noise = engine.streams.normal(shape, "image-latents").to(read.device)
        return self.backbone.encode(read, noise)

    def _as_canvas(self, latents: Tensor) -> Tensor:
        """Convert caller-supplied latents to float32 on the model's device."""
        return latents.to(self.backbone.device).float()

    def _shape(self, plan: RunPlan) -> tuple[int, int, int, int]:
        canvas = plan.phases[0].canvas
        return (1, self.backbone.latent_channels, canvas.height, canvas.width)


def _read(image: object, backbone: Backbone) -> Image | Tensor | None:
    """Read the caller's picture; None if it may be latents, as the size of the canvas will show."""
    import torch

    channels, shape = backbone.latent_channels, tuple(getattr(image, "shape", ()))
    is_floats = isinstance(image, torch.Tensor) and image.is_floating_point()
    if image is None or (is_floats and len(shape) == 4 and shape[:2] == (1, channels)):
        return None
    return read_picture(image, "image", alternative=f", or latents with {channels} channels")
