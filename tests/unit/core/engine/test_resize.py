"""How a picture grows: bicubic, sharpened by what a blur takes, without a seam where edges meet."""

import pytest
import torch
import torch.nn.functional as F

from vitrail.core.engine.resize import bicubic, blurred, grown_latents, sharpened
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.streams import Streams

FLAT = Canvas(8, 8, 8)
RING = Canvas(8, 8, 8, wrap="xy")
SIZES = [((10, 12), (20, 24)), ((9, 14), (15, 17)), ((16, 8), (23, 8))]


def picture(height, width, batch=1, name="picture"):
    return Streams(0).uniform((batch, 3, height, width), name)


def interpolated(values, size):
    return F.interpolate(values, size, mode="bicubic", align_corners=False)


@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_without_sharpening_it_is_bicubic_and_clipped(size, wanted):
    own = picture(*size, batch=2)
    plain = interpolated(own, wanted)
    assert torch.equal(sharpened(bicubic(own, wanted, FLAT), 0.0, FLAT), 2 * plain.clamp(0, 1) - 1)
    assert plain.max() > 1  # it overshoots


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize(("size", "wanted"), SIZES)
def test_sharpening_adds_what_the_blur_takes_and_does_not_clip(size, wanted, alpha):
    own = picture(*size, batch=2)
    plain = interpolated(own, wanted)
    sharp = (1 + alpha) * plain - alpha * blurred(plain, FLAT)
    torch.testing.assert_close(sharpened(bicubic(own, wanted, FLAT), alpha, FLAT), 2 * sharp - 1, rtol=1e-5, atol=1e-5)
    assert sharp.max() > 1


def test_the_blur_is_a_mean_of_neighbours():
    dot = torch.zeros(1, 3, 5, 5)
    dot[..., 2, 2] = 1
    line = torch.tensor([0.0, 0.25, 0.5, 0.25, 0.0])
    assert torch.equal(blurred(dot, FLAT), (line[:, None] * line).expand(1, 3, 5, 5))
    torch.testing.assert_close(blurred(torch.ones(1, 3, 4, 6), FLAT), torch.ones(1, 3, 4, 6))


@pytest.mark.parametrize("size", [(5, 8), (9, 3)])
def test_at_an_edge_the_blur_goes_on_in_a_mirror(size):
    """A picture and its mirror without the edge are a ring: torchvision's blur, which the authors call, has that."""
    own = picture(*size)
    tall = torch.cat([own, own.flip(-2)[..., 1:-1, :]], -2)
    ring = torch.cat([tall, tall.flip(-1)[..., 1:-1]], -1)
    assert torch.equal(blurred(own, FLAT, "mirrored"), blurred(ring, RING)[..., : size[0], : size[1]])


def test_at_an_edge_the_blur_may_repeat_it_instead():
    own = picture(5, 8)
    padded = torch.nn.functional.pad(own, (1, 1, 1, 1), mode="replicate")
    assert torch.equal(blurred(own, FLAT), blurred(padded, FLAT, "mirrored")[..., 1:-1, 1:-1])


@pytest.mark.parametrize("canvas", [FLAT, RING], ids=["edged", "ring"])
@pytest.mark.parametrize("sharpen", [0.0, 1.0])
def test_a_constant_picture_stays(sharpen, canvas):
    constant = torch.tensor([0.1, 0.5, 0.9]).view(1, 3, 1, 1)
    grown = sharpened(bicubic(constant.expand(1, 3, 8, 10), (17, 25), canvas), sharpen, canvas)
    torch.testing.assert_close(grown, (2 * constant - 1).expand(1, 3, 17, 25), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "wanted", "rolls"), [((8, 12), (16, 24), (3, 5)), ((12, 9), (20, 15), (3, 6))])
def test_where_edges_meet_a_rolled_picture_grows_to_a_rolled_one(size, wanted, rolls):
    own = picture(*size)
    by = tuple(roll * long // short for roll, long, short in zip(rolls, wanted, size, strict=True))
    for grow in (lambda p: bicubic(p, wanted, RING), lambda p: sharpened(bicubic(p, wanted, RING), 1.0, RING)):
        rolled = grow(own.roll(rolls, (-2, -1)))
        assert rolled.shape[-2:] == wanted
        torch.testing.assert_close(rolled, grow(own).roll(by, (-2, -1)), rtol=0, atol=1e-5)
    edged = bicubic(own, wanted, FLAT)
    assert (bicubic(own, wanted, RING) - edged)[..., 5:-5, 5:-5].abs().max() < 1e-5
    assert (bicubic(own, wanted, RING) - edged).abs().max() > 0.01


@pytest.mark.parametrize(("length", "wanted"), [(7, 16), (2, 5), (1, 4), (8, 8)])
def test_a_ring_of_any_length_grows_to_any_other(length, wanted):
    own = picture(length, length)
    thrice = interpolated(own.repeat(1, 1, 3, 3), (3 * wanted, 3 * wanted))
    torch.testing.assert_close(bicubic(own, (wanted, wanted), RING), thrice[..., wanted:-wanted, wanted:-wanted])


def test_latents_grow_without_their_padding_which_repeats_the_edge():
    before, after = Canvas(10, 9, 8, pad_height=2, pad_width=1), Canvas(16, 18, 8, pad_height=3)
    latents = Streams(0).normal((2, 4, 10, 9), "latents")
    grown = grown_latents(latents, before, after)
    assert torch.equal(grown[..., :13, :], interpolated(latents[..., :8, :8], (13, 18)))
    assert torch.equal(grown[..., 13:, :], grown[..., 12:13, :].expand(-1, -1, 3, -1))
    other = latents.clone()
    other[..., 8:, :] = other[..., 8:] = 9.0
    assert torch.equal(grown_latents(other, before, after), grown)
