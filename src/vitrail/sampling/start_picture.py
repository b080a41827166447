"""Pictures read from files: one to start from, brought to the canvas, and those that an experiment made itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.errors import ConfigError
from vitrail.sampling.picture_reader import read

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PROGRAMS = ("EPS",)  # formats that Pillow hands to another program


def open_picture(path: str | None, quiet: bool = False) -> Image:
    """A file as an upright RGB picture; see ``read``.

    Args:
        path: Of the file, ``~`` for the home folder.
        quiet: Say nothing of a ground that shows, since it was said or will be.

    Raises:
        ConfigError: If it is not there or no picture.
    """
    from PIL import Image

    file = expanded(str(path))
    try:
        refuse_irregular(file)
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:  # of metadata that is broken
            if image.format in PROGRAMS:
                raise ConfigError(f"image {path!r}: is {image.format}, which a program draws; convert it to PNG")
            image.load()
            picture = read(image, f"image {path!r}", quiet=quiet)
    except FileNotFoundError as error:
        raise ConfigError(f"image {path!r}: no such file") from error
    except ConfigError:
        raise
    except Exception as error:  # Pillow has errors of many kinds for a broken file
        raise ConfigError(f"image {path!r}: cannot be read as a picture: {type(error).__name__}") from error
    assert isinstance(picture, Image.Image)
    return picture


def pad_picture(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture grown to the right and below by repeating its edge.

    Args:
        picture: Float32[Tensor, "batch 3 Height Width"].
        height: Wanted pixels, at least as many as there are.
        width: Wanted pixels, as above.
    """
    import torch.nn.functional as F

    return F.pad(picture, (0, width - picture.shape[-1], 0, height - picture.shape[-2]), mode="replicate")


@contextmanager
def of_any_size() -> Iterator[None]:
    """Pillow's guard against bombs lowered, for pictures of the project's own."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def open_own(file: Path) -> Image:
    """A picture of an experiment in RGB, of any size.

    Raises:
        ConfigError: If it is not there or no picture.
    """
    with of_any_size():
        return open_picture(str(file))
