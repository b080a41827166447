"""Pictures made by experiments, which may be larger than Pillow's limit for untrusted files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.sampling.start_picture import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image


@contextmanager
def of_any_size() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels, for the project's own pictures; affects the whole process."""
    from PIL import Image

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
