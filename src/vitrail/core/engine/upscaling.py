"""Calls of an upscaler in a run: across edges that meet, on one rank for all of them, with a checked result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from vitrail.core.method.members import OptionalUpscaler
from vitrail.core.method.returned_values import check_upscaled

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.run_config import Wrap
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.method.calls import StrategyCall
    from vitrail.core.method.protocols import Upscaler


def upscaled(asked: StrategyCall, picture: Tensor, size: tuple[int, int], wrap: Wrap, exchange: Exchange) -> Tensor:
    """Enlarge a picture; collective: rank 0 computes and sends the result, so that ranks of any kind agree on it.

    Args:
        asked: The upscaler, for messages.
        picture: In [0, 1], Float32[Tensor, "batch 3 h w"], equal on all ranks.
        size: Height and width of the result, pixels.
        wrap: Axes whose ends meet.
        exchange: The ranks.

    Returns:
        Float32[Tensor, "batch 3 *size"] in [0, 1], on the picture's device.

    Raises:
        ShapeError: If the upscaler returns anything else.
    """
    import torch

    communicator = exchange.communicator
    communicator.note(f"upscaling a picture to {size[1]}x{size[0]} pixels")
    result = _upscaled(asked, picture, size, wrap) if exchange.rank == 0 else None
    if exchange.is_alone:
        assert result is not None
        return result
    if result is None:
        wire = torch.empty((*picture.shape[:2], *size), dtype=picture.dtype, device=communicator.device)
    else:
        wire = result.to(communicator.device)
    communicator.broadcast(wire, 0)
    return wire.to(picture.device) if result is None else result


def _upscaled(asked: StrategyCall, picture: Tensor, size: tuple[int, int], wrap: Wrap) -> Tensor:
    """Return the checked result of an upscaler; wrapped axes are enlarged with what lies across their ends."""
    upscaler = cast("Upscaler", asked.strategy)
    overlaps = [
        overlap(length, wanted, OptionalUpscaler.of(upscaler).reach) if axis in wrap else (0, 0)
        for axis, length, wanted in zip("yx", picture.shape[-2:], size, strict=True)
    ]
    (above, top), (before, left) = overlaps
    shown = _continued(_continued(picture, -2, above), -1, before)
    wanted = (size[0] + 2 * top, size[1] + 2 * left)
    with asked.noted():
        result = upscaler.upscale(shown, wanted)
    found = check_upscaled(asked, result, shown, wanted)
    return found[..., top : top + size[0], left : left + size[1]].contiguous()


def overlap(length: int, wanted: int, reach: int) -> tuple[int, int]:
    """Return the fewest pixels, ``reach`` or more, by which an axis is continued so that both ends stay whole pixels.

    Args:
        length: Pixels of the axis.
        wanted: Pixels of the resized axis.
        reach: Pixels of the axis that a pixel of the result depends on, on one side.

    Returns:
        Pixels at either end, before and after resizing.
    """
    unit = length // math.gcd(length, wanted)
    before = -(-reach // unit) * unit
    return before, before * wanted // length


def _continued(picture: Tensor, axis: int, pixels: int) -> Tensor:
    """Continue a picture by what lies across the ends of an axis, which may be more than the picture."""
    import torch

    if not pixels:
        return picture
    length = picture.shape[axis]
    order = torch.arange(-pixels, length + pixels, dtype=torch.int64, device=picture.device) % length
    return picture.index_select(axis, order)
