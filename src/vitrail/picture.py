"""A picture to start from: read from a file, brought to the canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def open_picture(path: str | None) -> Image:
    """A file as an upright RGB picture.

    Raises:
        ConfigError: If it is not there or no picture.
    """
    from PIL import Image

    try:
        with Image.open(str(path)) as image:
            return _rgb(image)
    except FileNotFoundError as error:
        raise ConfigError(f"image {path!r}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"image {path!r}: cannot be read as a picture: {type(error).__name__}") from error


def upright(picture: Any, latents: tuple[int, ...]) -> Any:
    """A picture as it is to be read: Pillow's in RGB, others as they are.

    Args:
        picture: As Pillow, numpy or torch have it.
        latents: Shape that latents given in its place would need.

    Raises:
        ConfigError: If it is a tensor of neither three colours nor that shape.
    """
    from PIL import Image

    if isinstance(picture, Image.Image):
        return _rgb(picture)
    shape = tuple(getattr(picture, "shape", ()))
    is_tensor = hasattr(picture, "untyped_storage")
    if is_tensor and (shape[-3:-2] != (3,) or len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1)):
        raise ConfigError(f"image must be (3, height, width) in [0, 1], or latents of {latents}; got {shape}")
    return picture


def _rgb(picture: Image) -> Image:
    """Upright and in colours; what is transparent shows what lies below."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(picture)
    return turned.convert("RGB")


def pad_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture grown to the right and below by repeating its edge.

    Args:
        picture: Float32[Tensor, "batch 3 Height Width"].
        height: Wanted pixels, at least as many as there are.
        width: Wanted pixels, as above.
    """
    import torch.nn.functional as F

    return F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]), mode="replicate")
