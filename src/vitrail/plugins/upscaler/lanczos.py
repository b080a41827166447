"""``lanczos``: resampling of a picture with a windowed sinc, in floating point.

Lanczos filtering (Duchon, 1979, https://doi.org/10.1175/1520-0450(1979)018<1016:LFIOAT>2.0.CO;2): with L(x) = sinc(x)
sinc(x / a) for |x| < a, else 0, a pixel of the result is the mean of the pixels around it, weighted by L of their
distance. Where a picture shrinks, distances are in pixels of the result, so that nothing aliases. The weights of pixels
outside of the picture are 0, and the others add up to 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

if TYPE_CHECKING:
    from torch import Tensor

LOBES = 3  # a


@frozen(kw_only=True)
class Lanczos:
    """Resample with a windowed sinc; without a network."""

    needs: ClassVar[frozenset[str]] = frozenset()
    lobes: int = field(default=LOBES, validator=v.and_(v.ge(1), v.le(8)))  # a of the window; more are sharper and ring

    @property
    def reach(self) -> int:
        """The half width of the window and its rounding; twice that, for axes that shrink by up to a half."""
        return 2 * (self.lobes + 1)

    def upscale(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """Resample, clipped to [0, 1]; for the arguments see ``Upscaler.upscale``."""
        return lanczos(picture, size, self.lobes)


def lanczos(picture: Tensor, size: tuple[int, int], lobes: int = LOBES) -> Tensor:
    """Resample a picture to a size, clipped to [0, 1]; the same picture if it has that size.

    Args:
        picture: In [0, 1], Float32[Tensor, "batch 3 h w"].
        size: Wanted height and width, pixels.
        lobes: a of the window.

    Returns:
        Float32[Tensor, "batch 3 *size"].
    """
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture.clone()
    return _along(_along(picture, -1, size[1], lobes), -2, size[0], lobes).clamp(0, 1)


def _along(picture: Tensor, axis: int, wanted: int, lobes: int) -> Tensor:
    """Resample one axis, pixel of the window by pixel, so that no more than a few pictures are in memory."""
    length = picture.shape[axis]
    if length == wanted:
        return picture
    positions, weights = _window(length, wanted, lobes)
    shape = (-1, 1) if axis == -2 else (-1,)
    total: Tensor | None = None
    for places, shares in zip(positions, weights, strict=True):
        part = picture.index_select(axis, places.to(picture.device)) * shares.to(picture).view(shape)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _window(length: int, wanted: int, lobes: int) -> tuple[Tensor, Tensor]:
    """Return the pixels that each pixel of a resampled axis is the mean of, and their weights.

    Args:
        length: Pixels of the axis.
        wanted: Pixels of the resampled axis.
        lobes: a of the window.

    Returns:
        Int64[Tensor, "taps wanted"] and Float64[Tensor, "taps wanted"] on the CPU.
    """
    import torch

    ratio = length / wanted
    stretch = max(1.0, ratio)  # of the window, where the axis shrinks
    taps = 2 * math.ceil(lobes * stretch) + 1
    centres = (torch.arange(wanted, dtype=torch.float64, device="cpu") + 0.5) * ratio - 0.5
    offsets = torch.arange(taps, dtype=torch.float64, device="cpu")[:, None] - taps // 2
    places = centres.round() + offsets
    distances = (places - centres) / stretch
    values = torch.where(distances.abs() < lobes, distances.sinc() * (distances / lobes).sinc(), 0.0)
    values = torch.where((places >= 0) & (places < length), values, 0.0)
    return places.clamp(0, length - 1).to(torch.int64), values / values.sum(0)
