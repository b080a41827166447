"""Mask pictures of regions: read once a call, and recognised by their content, whatever file they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.errors import ConfigError, Problems
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.input_digests import content_digest

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.config.region import Region


def read_masks(regions: Sequence[Region]) -> tuple[Tensor | None, ...]:
    """Read the mask of every region, None for those with a box.

    Returns:
        Brightness in [0, 1], Float32[Tensor, "Height Width"] on the CPU, of each picture's own size.

    Raises:
        ConfigError: Naming every mask that is missing or is no picture.
    """
    opened = open_masks(regions)
    return tuple(None if number not in opened else _grey(opened[number]) for number in range(len(regions)))


def open_masks(regions: Sequence[Region]) -> dict[int, Image]:
    """Open the masks of regions by the region's number; does not import torch. Raises as ``read_masks`` does."""
    problems, opened = Problems(), dict[int, "Image"]()
    for number, region in enumerate(regions):
        with problems.collect():
            try:
                if region.mask is not None:
                    opened[number] = open_picture(region.mask)
            except ConfigError as error:
                raise ConfigError(f"regions.{number}.mask: {error}") from error
    problems.tell()
    return opened


def _grey(picture: Image) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(picture.convert("L"), dtype=np.float32)) / 255


def mask_names(regions: Sequence[Region]) -> dict[int, str]:
    """Return the name under which a recipe keeps the digest of each mask, by the region's number."""
    return {number: f"regions.{number}.mask" for number, region in enumerate(regions) if region.mask is not None}


def mask_digests(regions: Sequence[Region], masks: Sequence[Tensor | None]) -> dict[str, str]:
    """Return a digest of every mask's content, by its name in a recipe.

    Args:
        regions: The regions.
        masks: As ``read_masks`` returned them.
    """
    return {name: content_digest(masks[number]) for number, name in mask_names(regions).items()}
