"""A picture of the page at full size and reduced, cut into tiles when they are asked for."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.errors import VitrailError
from vitrail.pictures.tiles import THUMB, levels_of, places_of, tile_of

if TYPE_CHECKING:
    from PIL.Image import Image


class NotThereError(VitrailError, LookupError):
    """There is no such picture, or no longer."""


@define(eq=False)
class Pyramid:
    """A picture, half of it and so on; a level is made once, by the first thread that asks for a tile of it.

    Attributes:
        image: The picture at full size, in RGB.
        number: How many pictures were shown in its place before it.
    """

    image: Image
    number: int
    _levels: list[Image] = field(init=False)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._levels = [self.image]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each level in pixels, the full size first."""
        return list(levels_of(self.image.height, self.image.width))

    def tile(self, level: int, row: int, column: int) -> bytes:
        """Return a tile as WebP, lossless at full size.

        Raises:
            NotThereError: If there is no such tile.
        """
        image = self._level(level)
        if (row, column) not in places_of(image.height, image.width):
            raise NotThereError("there is no such tile")
        return _webp(tile_of(image, row, column), lossless=level == 0)

    def thumb(self) -> bytes:
        """Return a small copy as WebP."""
        small = self.image.copy()
        small.thumbnail((THUMB, THUMB), reducing_gap=3.0)
        return _webp(small, lossless=False)

    def _level(self, level: int) -> Image:
        if not 0 <= level < len(self.sizes):
            raise NotThereError("there is no such tile")
        with self._lock:
            while len(self._levels) <= level:
                self._levels.append(self._levels[-1].reduce(2))
            return self._levels[level]


def _webp(image: Image, *, lossless: bool) -> bytes:
    kept = io.BytesIO()
    image.save(kept, format="WEBP", lossless=lossless, quality=20 if lossless else 88, method=1)
    return kept.getvalue()
