"""Pictures that an experiment made itself, which may be larger than Pillow believes of a stranger's."""

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
