"""Thumbnails of a page's pictures for its grid, and tiles of those that are too large for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from attrs import field, frozen

from vitrail.core.config.atomic import replacing, replacing_folder
from vitrail.core.config.fields import as_tuple
from vitrail.errors import ConfigError, OutputError
from vitrail.pictures.picture_files import of_any_size
from vitrail.pictures.tiles import THUMB, TILE, Sides, levels_of, places_of, tile_of

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 4096  # pixels: a picture with a longer side is shown in tiles, since browsers cannot hold many such pictures


@frozen(kw_only=True)
class Tiles:
    """A pyramid: the picture at full size, half of it and so on, each cut into disjoint tiles.

    Attributes:
        url: URL of the folder; a tile is ``LEVEL/ROW_COLUMN.webp`` in it.
        side: Side of a tile in pixels; tiles at the right and at the bottom may be smaller.
        levels: Height and width of each level in pixels, the full size first; the last one fits into a tile.
    """

    url: str
    side: int
    levels: tuple[Sides, ...] = field(converter=as_tuple)


@frozen(kw_only=True)
class Prepared:
    """The files of a picture on a page; URLs are quoted and relative to the page.

    Attributes:
        url: URL of the picture.
        height: Of the picture in pixels.
        width: Of the picture in pixels.
        thumb: URL of the thumbnail.
        thumb_size: Height and width of the thumbnail in pixels.
        tiles: The pyramid of a picture with a side above ``LARGEST``; None for smaller ones.
    """

    url: str
    height: int
    width: int
    thumb: str
    thumb_size: Sides
    tiles: Tiles | None


def prepare(folder: Path, file: str, into: str) -> Prepared:
    """Write thumbnail and tiles of a picture, unless they exist and are newer than the picture.

    Args:
        folder: Folder of the page.
        file: The picture, relative to the folder.
        into: Subfolder for thumbnails and tiles.

    Raises:
        ConfigError: If the file cannot be read as a picture.
        OutputError: If thumbnail or tiles cannot be written.
    """
    from PIL import Image

    path = folder / file
    thumb, tiles = f"{into}/thumbs/{file}.webp", f"{into}/tiles/{file}"
    try:
        with of_any_size(), Image.open(path) as image:
            height, width = image.height, image.width
            is_large = max(height, width) > LARGEST
            if not _is_newer(folder / thumb, path):
                (folder / thumb).parent.mkdir(parents=True, exist_ok=True)
                with replacing(folder / thumb) as part:
                    _save(_small(image), part, lossless=False)
            if is_large and not _is_newer(folder / tiles, path):
                write_tiles(image.convert("RGB"), folder / tiles)
        with Image.open(folder / thumb) as small:
            thumb_size = small.height, small.width
    except OutputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a picture: {error}") from error
    return Prepared(
        url=quote(file),
        height=height,
        width=width,
        thumb=quote(thumb),
        thumb_size=thumb_size,
        tiles=Tiles(url=quote(tiles), side=TILE, levels=levels_of(height, width)) if is_large else None,
    )


def write_tiles(image: Image, folder: Path) -> None:
    """Write the tiles of a pyramid as WebP, lossless at full size and lossy at the other levels.

    Args:
        image: The picture in RGB.
        folder: Target, one subfolder per level; it appears when it is complete.
    """
    with replacing_folder(folder) as part:
        for level, (height, width) in enumerate(levels_of(image.height, image.width)):
            image = image.reduce(2) if level else image
            (part / str(level)).mkdir()
            for row, column in places_of(height, width):
                file = part / str(level) / f"{row}_{column}.webp"
                _save(tile_of(image, row, column), file, lossless=level == 0)


def _small(image: Image) -> Image:
    """Return the picture in RGB, reduced to a longest side of at most ``THUMB`` pixels."""
    from PIL.Image import Resampling

    small = image.convert("RGB")
    small.thumbnail((THUMB, THUMB), Resampling.LANCZOS, reducing_gap=3.0)
    return small


def _save(image: Image, path: Path, *, lossless: bool) -> None:
    image.save(path, format="WEBP", lossless=lossless, quality=20 if lossless else 88, method=1 if lossless else 4)


def _is_newer(copy: Path, original: Path) -> bool:
    return copy.exists() and copy.stat().st_mtime_ns >= original.stat().st_mtime_ns
