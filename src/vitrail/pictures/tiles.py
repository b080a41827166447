"""A picture for a browser: at full size, half of it and so on, each level cut into tiles; and the viewer's files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

THUMB = 384  # pixels: the longest side of a thumbnail
TILE = 512  # pixels: the side of a tile
VIEWER = Path(__file__).parent / "viewer"  # scripts and styles of the viewer, and the style of all pages
Sides = tuple[int, int]


def levels_of(height: int, width: int) -> tuple[Sides, ...]:
    """Return height and width of each level in pixels: halved and rounded up until a level fits into one tile."""
    levels = [(height, width)]
    while max(levels[-1]) > TILE:
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    return tuple(levels)


def places_of(height: int, width: int) -> list[tuple[int, int]]:
    """Return row and column of every tile of a level of some height and width in pixels."""
    return [(row, column) for row in range(-(-height // TILE)) for column in range(-(-width // TILE))]


def tile_of(level: Image, row: int, column: int) -> Image:
    """Return a tile of a level; those at the right and at the bottom may be smaller."""
    left, top = column * TILE, row * TILE
    return level.crop((left, top, min(left + TILE, level.width), min(top + TILE, level.height)))
