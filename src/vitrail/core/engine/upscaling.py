"""Calls of an upscaler in a run: across edges that meet, on one rank for all of them, with a checked result."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from vitrail.core.geometry.continuation import Continuation
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
    with asked.noted():
        reach = OptionalUpscaler.of(upscaler).reach
    across = Continuation.of(picture.shape[-2:], size, wrap, reach)
    shown, (height, width) = across.extend(picture), across.after
    with asked.noted():
        result = upscaler.upscale(shown, (height, width))
    return across.crop(check_upscaled(asked, result, shown, (height, width))).contiguous()
