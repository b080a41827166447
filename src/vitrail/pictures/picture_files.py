"""Pictures read from files, those of users and of experiments, and padded to a canvas."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.errors import ConfigError, shortened
from vitrail.pictures.picture_reader import read

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PROGRAMS = ("EPS",)  # formats that Pillow passes to another program
_LIFTING = threading.RLock()


def open_picture(path: str | None, quiet: bool = False) -> Image:
    """Open a file as an upright RGB picture; see ``read``.

    Args:
        path: Path of the file; ``~`` is the home folder.
        quiet: Do not warn about transparency.

    Raises:
        ConfigError: If it does not exist or is not a picture.
    """
    from PIL import Image

    file = expanded(str(path))
    try:
        refuse_irregular(file)
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:  # warnings about broken metadata
            if image.format in PROGRAMS:
                raise ConfigError(f"image {path!r}: is {image.format}, which a program draws; convert it to PNG")
            image.load()
            picture = read(image, f"image {path!r}", quiet=quiet)
    except FileNotFoundError as error:
        raise ConfigError(f"image {path!r}: no such file") from error
    except ConfigError:
        raise
    except Image.DecompressionBombError as error:
        raise ConfigError(f"image {path!r}: is too large to be read; make it smaller: {error}") from error
    except Exception as error:  # Pillow raises many types for a broken file
        raise ConfigError(f"image {path!r}: cannot be read as a picture: {why_unreadable(error)}") from error
    assert isinstance(picture, Image.Image)
    return picture


def why_unreadable(error: Exception) -> str:
    """Return why Pillow or the system could not read a picture, without its path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is none, or cut off"
    return shortened(str(getattr(error, "strerror", None) or error) or type(error).__name__)


def pad_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """Pad a picture at the right and the bottom by repeating its edge.

    Args:
        picture: Float32[Tensor, "batch 3 Height Width"].
        height: Wanted height, pixels, no less than the picture's.
        width: Wanted width, pixels, no less than the picture's.
    """
    import torch.nn.functional as F

    return F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]), mode="replicate")


@contextmanager
def of_any_size() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels, for the project's own pictures.

    The limit is the process's: threads take turns, so that none restores what another has lifted.
    """
    from PIL import Image

    with _LIFTING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def open_own(file: Path) -> Image:
    """Open an experiment's picture in RGB, of any size.

    Raises:
        ConfigError: If it does not exist or is not a picture.
    """
    with of_any_size():
        return open_picture(str(file))
