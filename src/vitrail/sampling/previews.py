"""Previews: small pictures of what is predicted during a run, and the file that shows the latest one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attrs import define, field

from vitrail.comm.backends.in_process import solo
from vitrail.core.config.atomic import replacing
from vitrail.core.config.log import logger
from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.core.engine.exchange import Exchange
from vitrail.core.engine.resize import without_padding
from vitrail.errors import ConfigError, VitrailError
from vitrail.pictures.picture_files import of_any_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.backbone import Backbone, CallbackValue
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.streams import Streams
    from vitrail.sampling.callbacks import CallbackRun

Made = TypeVar("Made")
KEY = "vitrail.preview"  # text in the file, by which it is known that nothing is lost with it


def preview(prediction: Prediction, canvas: Canvas, backbone: Backbone, backs_off: bool, streams: Streams) -> Image:
    """Decode the clean prediction of a canvas at the training size or less; not collective, draws from no stream.

    The mean of latent cells stands for the latents of the reduced picture, which is about so for an autoencoder whose
    latents are a picture of their own; fine texture is paler than in the picture itself.

    Args:
        prediction: Of the whole canvas, Float32[Tensor, "1 channels height width"].
        canvas: The canvas, whose padding is left out.
        backbone: The model.
        backs_off: Whether decoding may be split when memory runs out.
        streams: Random streams of the picture, for a decoder that draws noise.

    Raises:
        PredictionError: If the decoded picture is not finite.
    """
    import torch.nn.functional as F

    inner, size = canvas.inner, reduced(canvas.inner, backbone.native_size)
    clean = without_padding(prediction.clean, canvas)
    clean = clean if size == inner else F.interpolate(clean, size, mode="area")
    decoded = backbone.decode(clean, Exchange.among(solo()), canvas.wrap, backs_off, streams)
    return backbone.to_pil(_without_cut(decoded, canvas))[0]


def reduced(size: tuple[int, int], native: int) -> tuple[int, int]:
    """Return the height and width, in cells, of a preview: of the picture's shape, ``native**2`` cells at most.

    Args:
        size: Height and width of the picture, cells.
        native: Side of a training picture, cells.
    """
    height, width = size
    factor = max(1.0, math.sqrt(height * width) / native)
    small = max(1, int(height / factor)), max(1, int(width / factor))
    return min(small[0], native**2 // small[1] or 1), min(small[1], native**2)


def _without_cut(decoded: Tensor, canvas: Canvas) -> Tensor:
    """Crop the share by which the last cells exceed the picture, Float32[Tensor, "1 3 Height Width"]."""
    pairs = zip(decoded.shape[-2:], canvas.picture, canvas.inner, strict=True)
    height, width = (max(1, round(have * side / (cells * canvas.cell))) for have, side, cells in pairs)
    return decoded[..., :height, :width]


@define
class PreviewAttempts:
    """Attempts at previews, of which none ends the run: the first failure after a success is logged.

    Attributes:
        shown_at: Where the previews are shown, for the warning.
        failed: Whether the last one could not be made.
    """

    shown_at: str
    failed: bool = False

    def make(self, attempt: Callable[[], Made]) -> Made | None:
        """Return what an attempt returns; None if it fails."""
        try:
            made = attempt()
        except (VitrailError, RuntimeError) as error:
            if not self.failed:
                logger().warning("preview.not_written", path=self.shown_at, reason=str(error))
            self.failed = True
            return None
        self.failed = False
        return made


@define(kw_only=True)
class PreviewFile:
    """A ``callback_on_step_end`` that keeps a PNG file with the latest preview, replaced as a whole.

    If it cannot be made or written, a warning is logged once, and the run goes on.

    Attributes:
        path: The file.
        every: Steps between two previews; the first is that of a picture's first step.
    """

    path: Path = field(converter=expanded)
    every: int = 5
    _attempts: PreviewAttempts = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._attempts = PreviewAttempts(str(self.path))
        if self.every < 1:
            raise ConfigError(f"a preview every {self.every} steps: give 1 or more")

    def __call__(self, run: CallbackRun, step: int, timestep: Tensor, tensors: Mapping[str, CallbackValue]) -> None:
        """Write the preview, if it is due after this step."""
        if step % self.every == 0:
            self._attempts.make(lambda: save_preview(run.preview(), self.path))


def save_preview(image: Image, path: Path) -> None:
    """Write a preview as PNG, atomically, marked as one.

    Raises:
        OutputError: If it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(KEY, "what was predicted during a run")
    with replacing(path) as part:
        image.save(part, format="PNG", pnginfo=info)


def is_preview(path: Path) -> bool:
    """Whether a file is a preview, so that the next one may replace it."""
    from PIL import Image

    try:
        refuse_irregular(path)
        with of_any_size(), Image.open(path, formats=["PNG"]) as image:
            return KEY in image.info
    except (OSError, ValueError, SyntaxError):
        return False
