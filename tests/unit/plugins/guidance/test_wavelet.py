"""Wavelet guidance: whose bands the picture has, when, and what it costs."""

import pytest
import pywt
import torch
from attrs import evolve

from schedulers import new_scheduler
from toy import FACTOR, NATIVE, VARIANCE, smooth_templates
from vitrail import hookimpl
from vitrail.backbones.analytic import AnalyticBackbone, MixturePrior
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.geometry.views import Canvas
from vitrail.core.method.composition import Composition
from vitrail.core.method.cost import Cost
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.plugins.guidance.wavelet import AXES, WAVELET, Wavelet, with_low_band
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.sampler import Sampler
from vitrail.testing import make_prediction, make_step

SIZES = [(64, 64), (63, 50), (40, 41), (9, 7), (1, 2)]
INSIDE = (..., slice(8, -8), slice(8, -8))  # a filter's length from the edge, where bands are told apart
WHOLE = {"patching": "whole", "fusion": "average"}


def picture(height, width, name="picture", batch=1):
    return 2 * Streams(0).uniform((batch, 3, height, width), name) - 1


def canvas(height, width, wrap="none"):
    return Canvas(height, width, 8, wrap=wrap)


def bands(values, mode="symmetric"):
    low, high = pywt.dwt2(values.double().numpy(), WAVELET, mode, AXES)
    return torch.from_numpy(low), [torch.from_numpy(each) for each in high]


@pytest.mark.parametrize("wrap", ["none", "x", "xy"])
@pytest.mark.parametrize("size", SIZES)
def test_its_own_low_band_changes_no_bit(size, wrap):
    own = picture(*size, batch=2)
    assert torch.equal(with_low_band(own, own, canvas(*size, wrap)), own)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_inverse_transform_of_one_low_and_other_high_bands(size):
    shown, wanted = picture(*size, "shown", 2), picture(*size, "wanted", 2)
    low, high = bands(wanted)[0], bands(shown)[1]
    back = pywt.idwt2((low.numpy(), tuple(each.numpy() for each in high)), WAVELET, "symmetric", AXES)
    expected = torch.from_numpy(back[..., : size[0], : size[1]]).float()
    torch.testing.assert_close(with_low_band(shown, wanted, canvas(*size)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES[:3])
def test_the_low_band_is_the_wanted_one_and_the_high_bands_are_untouched(size):
    shown, wanted = picture(*size, "shown"), picture(*size, "wanted")
    low, high = bands(with_low_band(shown, wanted, canvas(*size)))
    torch.testing.assert_close(low[INSIDE], bands(wanted)[0][INSIDE], rtol=0, atol=1e-5)
    for got, own in zip(high, bands(shown)[1], strict=True):
        torch.testing.assert_close(got[INSIDE], own[INSIDE], rtol=0, atol=1e-5)
    assert (low - bands(shown)[0])[INSIDE].abs().max() > 0.1


def test_where_edges_meet_the_bands_are_told_apart_up_to_them():
    size, ring = (64, 48), canvas(64, 48, "xy")
    shown, wanted = picture(*size, "shown"), picture(*size, "wanted")
    edited = with_low_band(shown, wanted, ring)
    torch.testing.assert_close(bands(edited, "periodic")[0], bands(wanted, "periodic")[0], rtol=0, atol=1e-5)
    rolled = with_low_band(shown.roll((6, 10), AXES), wanted.roll((6, 10), AXES), ring)
    torch.testing.assert_close(rolled, edited.roll((6, 10), AXES), rtol=0, atol=1e-5)
    edged = with_low_band(shown, wanted, canvas(*size))
    assert (edged - edited).abs().max() > 0.01 and torch.allclose(edged[INSIDE], edited[INSIDE], atol=1e-5)


def test_out_of_its_steps_it_changes_no_bit_and_costs_nothing():
    guidance, square = Wavelet(until=0.33), canvas(8, 8)
    assert guidance.init() is None
    for changes in ({"phase": 0, "index": 0}, {"phase": 1, "index": 5}, {"phase": 2, "index": 14}):
        step = make_step(changes.pop("index"), 15, **changes)
        subject = make_prediction((1, 4, 8, 8), step)
        assert guidance.guide(step, subject, GuidanceContext(), None) == (subject, None)
        assert guidance.cost(step, square, 2) == Cost()
    assert guidance.cost(make_step(4, 15, phase=1), square, 2) == Cost(decodes=1, encodes=1)


@pytest.mark.parametrize(("num_steps", "guided"), [(15, 5), (6, 2), (30, 10), (3, 1), (1, 0)])
def test_a_third_of_the_steps_is_guided(num_steps, guided):
    steps = [make_step(0, num_steps, phase=1, stage_step=k, stage_num_steps=num_steps) for k in range(num_steps)]
    costs = [Wavelet().cost(step, canvas(8, 8), 2) for step in steps]
    assert [cost.decodes for cost in costs] == [1] * guided + [0] * (num_steps - guided)


def toy(until, resize="pixels", scheduler="EulerDiscreteScheduler", plugins=()):
    stages = [
        WHOLE,
        WHOLE | {"enter": {"resize": resize, "strength": [0.5]}, "guidance": [{"type": "wavelet", "until": until}]},
    ]
    composition = Loader(build_registry()).structure({"cascade": {}, "stages": stages}, Composition, "test")
    backbone = AnalyticBackbone(
        prior=MixturePrior(0.3 * smooth_templates(1, 1), VARIANCE),
        scheduler=new_scheduler(scheduler),
        vae_scale_factor=FACTOR,
        native_size=NATIVE,
        offers=frozenset({"vae"}),
    )
    return Sampler(backbone, composition, model="analytic", plugins=plugins)


class Probe:
    """Keeps what guidance got and gave."""

    def __init__(self):
        self.seen = []

    @hookimpl(wrapper=True)
    def vitrail_guide(self, step, subject, scene):
        guided = yield
        self.seen.append((step, subject, guided[0], scene))
        return guided


RUN = RunConfig(prompt="", height=152, width=104, num_inference_steps=8, guidance_scale=1.0)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_predicted_pictures_have_the_low_band_of_the_grown_one(name):
    """On a VAE whose latents are means of blocks of pixels, so that what is encoded can be told."""
    probe = Probe()
    result = toy(1.0, scheduler=name, plugins=(("probe", probe),)).run(RUN, output_type="latent")
    guided = [each for each in probe.seen if each[0].phase == 1]
    assert len(guided) == 4 and {step.phase for step, *_ in probe.seen} == {1}
    for step, before, after, scene in guided:
        vae, canvas = scene.vae, scene.canvas
        edited = with_low_band(2 * vae.decode(before.clean, canvas) - 1, scene.start.picture, canvas)
        assert edited.shape[-2:] == (RUN.height, RUN.width)
        torch.testing.assert_close(after.clean, vae.encode(edited, canvas), rtol=1e-4, atol=1e-4)
        assert after.step is step and (after.clean - before.clean).abs().max() > 1e-3
    torch.testing.assert_close(result.latents, guided[-1][2].clean, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("until", [0.0, 0.3, 1.0])
def test_what_it_asks_of_the_vae_is_counted_before(until):
    sampler = toy(until)
    cost, report = sampler.plan(RUN).cost, sampler.run(RUN).report
    asked = round(4 * until)
    assert (cost.decodes, cost.encodes) == (2 + asked, 1 + asked) == (report.vae_decodes, report.vae_encodes)


def test_no_guided_step_is_no_guidance():
    plain = evolve(toy(0.0).composition, stages=[evolve(s, guidance=()) for s in toy(0.0).composition.stages])
    backbone = toy(0.0).backbone
    alone = Sampler(backbone, plain, model="analytic").run(RUN, output_type="latent").latents
    assert torch.equal(toy(0.0).run(RUN, output_type="latent").latents, alone)
    assert not torch.equal(toy(1.0).run(RUN, output_type="latent").latents, alone)


def test_it_needs_a_picture_to_compare_with():
    with pytest.raises(ConfigError, match=r"Wavelet compares with the grown picture.*resize = .pixels"):
        toy(0.5, resize="latents")
