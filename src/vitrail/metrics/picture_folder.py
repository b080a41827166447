"""A reference set from a folder of picture files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.config.paths import expanded
from vitrail.core.method.metric import Shown
from vitrail.errors import ConfigError
from vitrail.pictures.picture_files import open_picture

if TYPE_CHECKING:
    from torch import Tensor

SCHEME = 3  # version of the preprocessing; raised whenever the same files would give other pixels
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@frozen(kw_only=True)
class PictureFolder:
    """Pictures of a folder without its subfolders, cropped to the centre and resized to a size.

    They are read as every picture is, upright and in RGB, by the range of their mode; see ``sampling.picture_reader``.
    """

    path_options: ClassVar[tuple[str, ...]] = ("path",)
    path: str = field(validator=v.min_len(1))  # folder of PNG, JPEG or WebP files
    grow: bool = False  # accept pictures smaller than the wanted size and enlarge them, which blurs

    def pictures(self, height: int, width: int) -> Iterator[Shown]:
        """Yield all pictures at a size in pixels, sorted by file name, with an empty prompt and a ``native_size`` of 0.

        Raises:
            ConfigError: If the folder has no pictures, or one cannot be read or is too small.
        """
        for file in files_of(self.path):
            yield Shown(picture=self._read(file, height, width), prompt="", native_size=0)

    @property
    def digest(self) -> str:
        """SHA-256 digest of the files' contents, whatever their names, and of the preprocessing.

        Raises:
            ConfigError: If the folder has no pictures.
        """
        contents = digest_of_files(files_of(self.path))
        return hashlib.sha256(f"folder/{SCHEME}/{self.grow}/{contents}".encode()).hexdigest()

    def _read(self, file: Path, height: int, width: int) -> Tensor:
        import torch

        try:
            rgb = open_picture(str(file), quiet=True)
        except ConfigError as error:
            raise ConfigError(f"reference folder: {error}") from error
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
        picture = pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1).float() / 255
        if not self.grow and (rgb.height < height or rgb.width < width):
            raise ConfigError(
                f"reference folder: {file} has {rgb.height}x{rgb.width} pixels, {height}x{width} are wanted; "
                "take larger pictures, or set grow = true to have small ones enlarged"
            )
        return fitted(picture, height, width)


def files_of(path: str) -> tuple[Path, ...]:
    """Return the picture files of a folder, sorted by name.

    Raises:
        ConfigError: If there is no folder or it has no picture files.
    """
    folder = expanded(path)
    found = sorted(filter(_is_picture, folder.iterdir())) if folder.is_dir() else []
    if not found:
        what = f"has no {', '.join(ENDINGS)} file in it" if folder.is_dir() else "is no folder"
        raise ConfigError(f"reference folder: {path} {what}")
    return tuple(found)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and path.is_file()


def fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """Crop the largest centred part of the wanted aspect ratio and resize it, bicubic with antialiasing.

    Args:
        picture: Float32[Tensor, "3 Height Width"] in [0, 1].
        height: Wanted height in pixels.
        width: Wanted width in pixels.

    Returns:
        Float32[Tensor, "3 height width"] in [0, 1].
    """
    import torch.nn.functional as F

    scale = min(picture.shape[1] / height, picture.shape[2] / width)
    rows, columns = round(height * scale), round(width * scale)
    top, left = (picture.shape[1] - rows) // 2, (picture.shape[2] - columns) // 2
    part = picture[None, :, top : top + rows, left : left + columns]
    if (rows, columns) == (height, width):
        return part[0]
    return F.interpolate(part, size=(height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
