"""Lanczos resampling: a partition of unity that keeps smooth pictures, and Pillow's up to its rounding."""

import pytest
import torch
from PIL import Image

from vitrail.core.schedule.streams import Streams
from vitrail.plugins.upscaler.lanczos import Lanczos, lanczos

PICTURE = Streams(5).uniform((1, 3, 23, 31), "picture")


@pytest.mark.parametrize("size", [(46, 62), (50, 40), (100, 31), (12, 20), (1, 1)])
def test_it_is_pillows_in_floating_point(size):
    """Pillow resamples a picture of one float a pixel with the same window, normalised at the edges in the same way."""
    for channel in PICTURE[0]:
        grey = Image.frombuffer("F", (31, 23), channel.contiguous().numpy().tobytes())
        resized = bytearray(grey.resize(size[::-1], Image.Resampling.LANCZOS).tobytes())
        theirs = torch.frombuffer(resized, dtype=torch.float32)
        ours = lanczos(channel[None, None].expand(1, 3, -1, -1), size)[0, 0]
        torch.testing.assert_close(ours, theirs.view(size).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_one_colour_stays_and_the_same_size_is_the_picture():
    grey = torch.full((2, 3, 5, 4), 0.3)
    torch.testing.assert_close(lanczos(grey, (17, 3)), torch.full((2, 3, 17, 3), 0.3), rtol=1e-6, atol=1e-6)
    same = lanczos(PICTURE, (23, 31))
    assert torch.equal(same, PICTURE) and same.data_ptr() != PICTURE.data_ptr()


def test_more_lobes_see_farther():
    assert Lanczos(lobes=5).reach > Lanczos().reach
    assert not torch.equal(Lanczos(lobes=2).upscale(PICTURE, (40, 40)), Lanczos().upscale(PICTURE, (40, 40)))
