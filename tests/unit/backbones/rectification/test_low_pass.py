"""The low-pass filter is the one that its definition gives, and keeping everything is no filter."""

import pytest
import torch

from vitrail.backbones.rectification.low_pass import LowPass, gains, ramp

close = torch.testing.assert_close  # in double precision
SIZES = [(16, 16), (24, 10), (13, 9), (2, 3)]


def features(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kept", [{"scale": 1.0}, {"scale": 0.5}, {"floor": 1.0}])
@pytest.mark.parametrize("soft", [False, True])
def test_a_filter_that_keeps_the_full_band_is_the_identity_bit_for_bit(kept, soft):
    shown = features(13, 16)
    everything = LowPass(**({"scale": 2.0, "floor": 0.5, "soft": soft, "padded": 1.5} | kept))
    assert torch.equal(everything(shown), shown)
    assert not torch.equal(LowPass(2.0, 0.5, soft)(shown), shown)


def by_definition(shown, scale, floor, reach, padded):
    """The spectrum with the mean in its middle, each half of an axis times its ramp; of it the real part."""
    height, width = shown.shape[-2:]
    tall, wide = round(padded * height), round(padded * width)
    filled = torch.zeros(*shown.shape[:2], tall, wide, dtype=shown.dtype)
    filled[..., :height, :width] = shown

    def axis(length):
        half = length // 2
        falls = [1 + (1 - floor) / reach(length) * (half / scale + 1 - u) for u in range(half)]
        fitted = torch.tensor(falls, dtype=shown.dtype).clamp(floor, 1)
        return torch.cat([fitted.flip(0), fitted])

    spectrum = torch.fft.fftshift(torch.fft.fft2(filled), dim=(-2, -1)) * torch.outer(axis(tall), axis(wide))
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real[..., :height, :width]


@pytest.mark.parametrize("size", [(16, 16), (24, 12), (8, 40)])
@pytest.mark.parametrize("scale", [1.5, 2.0, 3.0])
@pytest.mark.parametrize(("padded", "floor"), [(1.0, 0.6), (1.5, 0.0)])
def test_it_is_its_definition(size, scale, padded, floor):
    shown = features(*size)

    def soft(length):
        return int((scale - 1) * length // (2 * scale))

    def steep(length):
        return max(length // 8, 1)

    for is_soft, reach in ((False, steep), (True, soft)):
        expected = by_definition(shown, scale, floor, reach, padded)
        close(LowPass(scale, floor, is_soft, padded)(shown), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("soft", [False, True])
def test_it_keeps_means_and_halves_what_alternates(size, soft):
    """Of an alternation of both axes the floor of both is left, where sides are even."""
    only = LowPass(2.0, 0.5, soft)
    plain = torch.full((1, 1, *size), 3.0, dtype=torch.float64)
    close(only(plain), plain)
    if size == (16, 16):
        checks = (-1.0) ** torch.arange(16, dtype=torch.float64)
        board = torch.outer(checks, checks)[None, None]
        close(only(board), (ramp(16, 2.0, 0.5, soft)[8] ** 2) * board)
        assert ramp(16, 2.0, 0.5, False)[8] == 0.5


def test_gains_are_between_the_floor_and_1_and_the_same_for_opposite_frequencies():
    for height, width in SIZES:
        for soft in (False, True):
            gain = gains(height, width, 2.0, 0.5, soft)
            if gain is not None:
                assert gain.min() >= 0.25 and gain.max() == gain[0, 0] <= 1
                close(gain, gain.flip((0, 1)).roll((1, 1), (0, 1)))
