"""Contract check of an upscaler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitrail.core.engine.exchange import Exchange
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalUpscaler
from vitrail.core.method.returned_values import check_upscaled, check_upscaling_cost
from vitrail.core.schedule.streams import Streams
from vitrail.testing.contract import check_repeats, contract, instance_of, same

SIZES = (  # (height, width) before and after: one pixel, odd ones, no whole factor, an axis that shrinks, nothing to do
    ((1, 1), (4, 4)),
    ((1, 3), (2, 13)),
    ((5, 7), (13, 16)),
    ((6, 4), (5, 9)),
    ((4, 5), (4, 5)),
)
FARTHEST = 96  # pixels; a longer reach is not tried, since its pictures would be large


def check_upscaler(upscaler: Any) -> None:
    """Check that pictures of any size come back at the wanted one, in [0, 1], as float32, each by itself.

    The picture must not be written into. What is farther away than ``reach`` must not matter, and the default dtype and
    device of the process must not either. Equal arguments must give equal pictures, see ``check_repeats``.

    Args:
        upscaler: A class, built with its defaults, or an instance; one that reads a file needs it.

    Raises:
        AssertionError: Naming the broken rule.
    """
    strategy = instance_of("upscaler", upscaler)
    with contract():
        OptionalUpscaler.of(strategy).check()
    for before, after in SIZES:
        _check_size(strategy, before, after)
    _check_reach(strategy)
    check_repeats(strategy, _play)
    _check_device(strategy)


def _check_size(strategy: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    drawn = _picture(before)
    asked, where = StrategyCall("upscaler", strategy), f"from {before} to {after} pixels"
    for picture in (drawn, torch.zeros_like(drawn), torch.ones_like(drawn)):
        kept = picture.clone()
        result = strategy.upscale(picture, after)
        with contract():
            check_upscaled(asked, result, picture, after)
        assert torch.equal(picture, kept), f"the picture must not be written into, {where}"
    both, second = strategy.upscale(drawn, after), strategy.upscale(drawn[1:], after)
    message = f"a picture changes with the others of its batch, {where}"
    torch.testing.assert_close(both[1:], second, rtol=1e-5, atol=1e-5, msg=message)
    with contract():
        check_upscaling_cost(asked, OptionalUpscaler.of(strategy).cost(before, after))


def _check_reach(strategy: Any) -> None:
    """Check both axes, since a picture whose ends meet is only continued by as much as the reach says."""
    reach = OptionalUpscaler.of(strategy).reach
    assert type(reach) is int and reach >= 0, f"reach must be a whole number of pixels, got {reach!r}"
    if reach > FARTHEST:
        return
    for flip in (False, True):
        near = _picture((2, reach + 2))
        far = near.clone()
        far[..., -1] = 1 - far[..., -1]
        ends = []
        for picture in (near, far):
            shown = picture.mT if flip else picture
            result = strategy.upscale(shown, (2 * shown.shape[-2], 2 * shown.shape[-1]))
            ends.append((result.mT if flip else result)[..., 0])
        assert torch.equal(*ends), f"a pixel depends on what is farther away than reach = {reach} pixels"


def _check_device(strategy: Any) -> None:
    """Check that results stay where the picture is, whatever device new tensors are made on by default."""
    message = "it changes with torch.set_default_device; name the device"
    try:
        with torch.device("meta"):
            elsewhere = _play(strategy)
    except RuntimeError as error:  # of tensors on two devices
        raise AssertionError(message) from error
    same(_play(strategy), elsewhere, message)


def _play(strategy: Any, exchange: Exchange | None = None) -> list[Tensor]:
    return [strategy.upscale(_picture(before), after) for before, after in SIZES[:3]]


def _picture(size: tuple[int, int]) -> Tensor:
    """Return two drawn pictures in [0, 1], Float32[Tensor, "2 3 *size"]."""
    return Streams(0).uniform((2, 3, *size), "picture")
