"""Dilated views: the blur's published numbers, what it keeps, and what an exchange of values cannot change."""

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from toy import composition, sample, toy_sampler
from vitrail import hookimpl
from vitrail.core.engine.guidance_context import GuidanceContext, Start
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.guidance.skip_residual import SkipResidual
from vitrail.plugins.patching.dilated import Dilated, blurred, deviation_at, gaussian_weights, with_moments_of
from vitrail.plugins.patching.windows import Windows
from vitrail.testing import make_step

FIRST = make_step(0, 50, timestep=981.0)
PUBLISHED = {  # by timestep: the cosine and its cube
    981: (0.9991, 0.9973),
    881: (0.9655, 0.8999),
    781: (0.8863, 0.6961),
    681: (0.7692, 0.4552),
    581: (0.6259, 0.2452),
    501: (0.5016, 0.1262),
    481: (0.4702, 0.1039),
    381: (0.3174, 0.0320),
    281: (0.1825, 0.0061),
    181: (0.0787, 0.0005),
    81: (0.0161, 0.0),
    1: (0.0, 0.0),
}


def noise(height, width, seed=0, batch=1):
    return Streams(seed).normal((batch, 4, height, width), "noise")


@pytest.mark.parametrize(
    ("stride", "weights"),
    [(2, [0.2388, 0.5224, 0.2388]), (4, [0.0004, 0.0218, 0.2282, 0.4991, 0.2282, 0.0218, 0.0004])],
)
def test_the_published_kernels(stride, weights):
    assert gaussian_weights(deviation_at(Dilated(), FIRST), stride) == pytest.approx(weights, abs=6e-5)


def test_the_published_cosines():
    for timestep, (cosine, cube) in PUBLISHED.items():
        step = make_step(3, 50, timestep=float(timestep))
        assert deviation_at(Dilated(sigma=1.0), step) == pytest.approx(0.99 * cosine + 0.01, abs=6e-5)
        start = Start(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
        kept, _ = SkipResidual().guide(step, torch.ones(1, 4, 2, 2), GuidanceContext(start=start), None)
        assert float(1 - kept.mean()) == pytest.approx(cube, abs=6e-5)


@given(height=st.integers(7, 20), width=st.integers(7, 20), stride=st.integers(2, 4))
def test_the_blur_is_a_convolution_of_every_channel(height, width, stride):
    canvas, line = noise(height, width).double(), torch.tensor(gaussian_weights(0.7, stride), dtype=torch.float64)
    kernel = (line[:, None] * line).expand(4, 1, -1, -1)
    expected = F.conv2d(canvas, kernel, padding=stride - 1, groups=4)
    torch.testing.assert_close(blurred(canvas, line.tolist(), (False, False)), expected)


def test_where_ends_meet_the_blur_goes_on():
    canvas, weights = noise(9, 12), gaussian_weights(0.7, 3)
    for axis, wraps in ((-2, (True, False)), (-1, (False, True))):
        soft = blurred(canvas, weights, wraps)
        torch.testing.assert_close(blurred(canvas.roll(5, axis), weights, wraps), soft.roll(5, axis))
        assert not torch.allclose(soft, blurred(canvas, weights, (False, False)))


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 20))
def test_the_blurred_canvas_has_the_mean_and_deviation_of_the_canvas_and_its_scale(seed, scale):
    canvas, x = Canvas(24, 32, 8), 3 * noise(24, 32, seed, batch=2) + 1
    soft = Dilated().prepare(FIRST, x, canvas)
    for one, other in zip(x, soft, strict=True):
        torch.testing.assert_close(torch.stack(torch.std_mean(other)), torch.stack(torch.std_mean(one)))
    assert (soft - x).abs().max() > 0.1
    torch.testing.assert_close(Dilated().prepare(FIRST, scale * x, canvas), scale * soft, rtol=1e-4, atol=1e-4)
    assert torch.equal(Dilated().prepare(FIRST, x[1:], canvas)[0], soft[1])


def test_nothing_is_blurred_where_nothing_is_left_out_or_where_all_is_flat():
    x = noise(8, 8)
    assert Dilated().prepare(FIRST, x, Canvas(8, 8, 8)) is x
    assert torch.equal(with_moments_of(x * 0 + 2, torch.ones_like(x)), x * 0 + 2)


@given(height=st.integers(1, 80), width=st.integers(1, 80), native=st.integers(2, 24))
def test_views_have_one_stride_and_part_the_canvas(height, width, native):
    strategy, canvas = Dilated(interaction="pixel"), Canvas(height, width, native)
    canvas = canvas.padded(*strategy.granularity(canvas))
    patches = strategy.patch(FIRST, canvas, 4, Streams(0))
    stride = max(canvas.scale("height"), canvas.scale("width"))
    assert {(view.vertical.step, view.horizontal.step) for view in patches.views} == {(stride, stride)}
    assert len(patches.views) == stride**2
    assert patches.cells * stride**2 == canvas.height * canvas.width
    assert (patches.permutation is None) == (stride == 1)


@pytest.mark.parametrize("interaction", ["element", "pixel"])
def test_an_exchange_of_values_changes_nothing_for_a_model_of_single_values(interaction):
    def latents(**options):
        stage = {"patching": {"type": "dilated", **options}, "fusion": "scatter"}
        return sample(toy_sampler(stage, templates=torch.ones(1, 4, 1, 1)), size=16)

    assert torch.equal(latents(interaction=interaction), latents())


class Mixed:
    """A network of one 1x1 convolution."""

    def __init__(self):
        self.weights = Streams(7).normal((4, 4), "weights")

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        answer = yield
        return evolve(answer, model_output=torch.einsum("oc,bchw->bohw", self.weights, rows.model_input))


@pytest.mark.parametrize("patching", ["dilated", "lattice"])
def test_an_exchange_of_pixels_changes_nothing_for_a_model_of_single_pixels_and_one_of_values_does(patching):
    """A 1x1 convolution sees the channels of one pixel, which stay together in the one and not in the other."""

    def latents(interaction):
        stage = {"patching": {"type": patching, "interaction": interaction}, "fusion": "scatter"}
        return sample(toy_sampler(stage, plugins=[("mixed", Mixed())]), size=16)

    plain = latents("none")
    assert torch.equal(latents("pixel"), plain)
    assert (latents("element") - plain).abs().max() > 0.1


def test_an_exchange_of_values_is_another_one_at_each_step():
    def order(index, seed=0):
        patches = Dilated(interaction="element").patch(make_step(index), Canvas(16, 16, 8), 4, Streams(seed))
        return patches.permutation

    assert order(0).shape == (4, 1, 4, 8, 8)
    assert torch.equal(order(0), order(0))
    assert not torch.equal(order(0), order(1)) and not torch.equal(order(0), order(0, 1))


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_windows_and_dilated_views_of_a_model_of_single_cells_are_direct_sampling(weight):
    """With a blur of next to nothing; what the network sees is then the canvas."""
    templates = torch.tensor([1.0, -0.5, 0.3, 0.0]).view(1, 4, 1, 1)
    mixed = {
        "patching": {"type": "windows", "jitter": True},
        "fusion": "average",
        "extra_views": [{"patching": {"type": "dilated", "sigma": 1e-3}, "fusion": "scatter", "weight": weight}],
    }
    direct = sample(toy_sampler({"patching": "whole", "fusion": "average"}, templates=templates), size=24)
    torch.testing.assert_close(sample(toy_sampler(mixed, templates=templates), size=24), direct, rtol=1e-4, atol=1e-4)


def test_the_skip_residual_does_nothing_at_the_first_size_and_all_at_full_weight():
    x, start = noise(8, 8), Start(noise(8, 8, 1), noise(8, 8, 2))
    assert SkipResidual().guide(FIRST, x, GuidanceContext(), None)[0] is x
    for index in (0, 4, 9):
        step = make_step(index)
        assert torch.equal(
            SkipResidual(power=0).guide(step, x, GuidanceContext(start=start), None)[0], start.noised(step)
        )
        assert torch.equal(SkipResidual(scale=0).guide(step, x, GuidanceContext(start=start), None)[0], x)


def test_windows_may_keep_their_places_at_one_size():
    def views(index, phase, redraw="size", seed=0):
        step = make_step(index, phase=phase)
        return Windows(jitter=True, redraw=redraw).patch(step, Canvas(64, 64, 16), 4, Streams(seed)).views

    assert views(0, 1) == views(7, 1)
    assert views(0, 1) != views(0, 2) and views(0, 1) != views(0, 1, seed=1)
    assert views(0, 1) != views(0, 1, "step") != views(7, 1, "step")
    assert composition({"patching": {"type": "windows", "redraw": "size"}, "fusion": "average"})
