"""Low-pass filters of features in the frequency domain, FouriScale's.

FouriScale (Huang et al., 2024, https://arxiv.org/abs/2403.12963), sec. 3: before a convolution with dilation
d, what lies beyond 1 / d of the spectrum is damped, as otherwise it would alias. The filter is not cut off at once but
falls over some frequencies to a floor, as in the authors' code.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class LowPass:
    """A filter of both axes.

    Attributes:
        scale: Share of the spectrum that is kept is 1 / scale; 1 or less is no filter.
        floor: What is left of the highest frequencies; 1 is no filter.
        soft: Whether it falls over all that is beyond the kept share, instead of over a quarter of the spectrum.
        padded: Sides that the features are filled up to with zeros below and to the right, over their own; 1 for none.
    """

    scale: float
    floor: float
    soft: bool = False
    padded: float = 1.0

    def __call__(self, features: Tensor) -> Tensor:
        """Return filtered features, Float[Tensor, "batch channels h w"]; computed in float32 at least.

        Bit-identical where the filter keeps everything.

        Args:
            features: Float[Tensor, "batch channels h w"].
        """
        import torch
        import torch.nn.functional as F

        height, width = features.shape[-2:]
        sides = [math.ceil(self.padded * side - 1e-6) for side in (height, width)]
        gain = gains(sides[0], sides[1], self.scale, self.floor, self.soft)
        if gain is None:
            return features
        exact = features.to(torch.promote_types(features.dtype, torch.float32))
        whole = F.pad(exact, (0, sides[1] - width, 0, sides[0] - height))
        spectrum = torch.fft.rfft2(whole) * gain[:, : sides[1] // 2 + 1].to(exact)
        filtered: Tensor = torch.fft.irfft2(spectrum, s=sides)[..., :height, :width].to(features.dtype)
        return filtered


@functools.lru_cache(64)
def gains(height: int, width: int, scale: float, floor: float, soft: bool) -> Tensor | None:
    """Return the factor of every frequency, in the order of ``fft2``.

    The product of both axes' ramps. These are symmetric about half a frequency, as in the authors' code, which takes
    the real part of what comes out; the same is the mean over a frequency and its opposite, which is returned.

    Args:
        height: Height of the features, cells.
        width: Width of the features, cells.
        scale: See ``LowPass``.
        floor: See ``LowPass``.
        soft: See ``LowPass``.

    Returns:
        Float64[Tensor, "height width"] on the CPU, or None if all are 1.
    """
    import torch

    rows, cols = (
        torch.tensor(ramp(side, scale, floor, soft), dtype=torch.float64, device="cpu") for side in (height, width)
    )
    both = torch.outer(rows, cols)
    gain: Tensor = (both + both.flip((0, 1)).roll((1, 1), (0, 1))) / 2
    return None if bool((gain == 1).all()) else gain


def ramp(length: int, scale: float, floor: float, soft: bool) -> list[float]:
    """Return the factors of one axis, in the order of ``fft``: 1, falling from 1 / scale of the spectrum to the floor.

    Args:
        length: Length of the axis, cells.
        scale: See ``LowPass``.
        floor: See ``LowPass``.
        soft: See ``LowPass``.
    """
    half = length // 2
    over = math.floor((scale - 1) * length / (2 * scale)) if soft else max(1, length // 8)
    if scale <= 1 or over < 1:
        return [1.0] * length
    frequencies = [*range(length - half), *range(-half, 0)]
    numbers = [each if each >= 0 else -each - 1 for each in frequencies]
    return [min(1.0, max(floor, 1 + (1 - floor) / over * (half / scale + 1 - each))) for each in numbers]
