"""A picture to start from: read from a file, brought to the canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def open_picture(path: str | None) -> Image:
    """A file as an upright RGB picture.

    Raises:
        ConfigError: If it is not there or no picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(str(path)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise ConfigError(f"image {path!r}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"image {path!r}: cannot be read as a picture: {type(error).__name__}") from error


def pad_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture grown to the right and below by repeating its edge.

    Args:
        picture: Float32[Tensor, "batch 3 Height Width"].
        height: Wanted pixels, at least as many as there are.
        width: Wanted pixels, as above.
    """
    import torch.nn.functional as F

    return F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]), mode="replicate")
