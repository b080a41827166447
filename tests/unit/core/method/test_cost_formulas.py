"""Evaluations of published methods for Stable Diffusion XL: the layout of a run against closed forms."""

import math

import pytest
import torch

from schedulers import new_scheduler
from vitrail.backbones.analytic import AnalyticBackbone, MixturePrior
from vitrail.core.config.run_config import RunConfig
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

NATIVE = 128  # latent cells of a training picture
STEPS = 50
OFFERS = frozenset({"attention-maps", "convolutions", "cross-attention", "self-attention", "unet-skips", "vae"})


def plan(method, height, width=None, sets=(), steps=STEPS):
    """What a run of a network of this size would do; nothing is computed."""
    backbone = AnalyticBackbone(
        prior=MixturePrior(torch.zeros(1, 4, 1, 1), 1.0),
        scheduler=new_scheduler("EulerDiscreteScheduler"),
        native_size=NATIVE,
        offers=OFFERS,
    )
    sampler = Sampler(backbone, load_method(method, sets), model="analytic")
    config = RunConfig(prompt="", height=height, width=width or height, num_inference_steps=steps, guidance_scale=7.5)
    return sampler.plan(config)


def evaluations(method, height, width=None, sets=(), steps=STEPS):
    """Forwards of one view of the training size with both branches."""
    return plan(method, height, width, sets, steps).cost.evaluations(NATIVE**2)


def area_cost(ratio):
    """A forward at so many times the training area: SDXL's share of attention grows with its square."""
    return 0.875 * ratio + 0.125 * ratio**2


def windows(side):
    """Windows along an axis of so many training sizes, overlapping by half."""
    return 2 * side - 1


@pytest.mark.parametrize(
    ("method", "published"),
    [
        ("direct", (275, 900, 2300)),
        ("multidiffusion", (450, 1250, 2450)),
        ("cutdiffusion", (325, 850, 1625)),
        ("asg", (325, 850, 1625)),
        ("demofusion", (700, 2400, 5650)),
        ("accdiffusion", (700, 2400, 5650)),
    ],
)
def test_the_published_evaluations(method, published):
    assert [evaluations(method, 1024 * side) for side in (2, 3, 4)] == list(published)


@pytest.mark.parametrize(("method", "published"), [("direct", 112.5), ("multidiffusion", 150), ("asg", 125)])
def test_the_published_evaluations_of_a_wide_picture(method, published):
    assert evaluations(method, 1024, 2048) == published


@pytest.mark.parametrize("overlap", [0.75])
@pytest.mark.parametrize(("side", "published"), [(2, 1250), (3, 4050), (4, 8450)])
def test_denser_windows_cost_what_is_published(overlap, side, published):
    assert evaluations("multidiffusion", 1024 * side, sets=[f"stages.0.patching.overlap={overlap}"]) == published


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_the_closed_forms_hold_at_other_sizes(side):
    small, steps = 1024 * side, 10
    assert evaluations("direct", small, steps=steps) == pytest.approx(steps * area_cost(side**2))
    grown = sum(windows(n) ** 2 + n**2 for n in range(2, side + 1))
    assert evaluations("demofusion", small, steps=steps) == steps * (1 + grown)
    last = steps * (windows(side) ** 2 + side**2) if side > 1 else 0
    assert evaluations("demofusion", small, sets=["cascade.count=1"], steps=steps) == steps + last


def test_latents_that_grow_pass_no_decoder_and_what_is_off_costs_nothing():
    cost = plan("demofusion", 4096).cost
    assert (cost.decodes, cost.encodes, cost.gradients) == (1, 0, 0)
    assert evaluations("demofusion", 4096, sets=["stages.1.extra_views=[]"]) == STEPS * (1 + 9 + 25 + 49)
    assert evaluations("accdiffusion", 4096, sets=["stages.1.guidance=[]"]) == 5650


def test_a_wide_picture_keeps_its_proportions_in_every_view():
    stages = plan("demofusion", 1024, 2048).stages
    assert [(stage.size, stage.num_views) for stage in stages] == [((512, 1024), 1), ((1024, 2048), 3 + 4)]
    rows = plan("demofusion", 1024, 2048).cost.rows
    assert rows == {64 * 128: 2 * STEPS * (1 + 4), 128 * 128: 2 * STEPS * 3}
    assert math.isclose(evaluations("demofusion", 1024, 2048), STEPS * (5 * area_cost(0.5) + 3))
