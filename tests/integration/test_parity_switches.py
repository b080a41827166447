"""What reproduces the authors' code where it differs from what is right: off unless it is asked for."""

import math

import pytest
import torch
from attrs import evolve, frozen

from schedulers import new_scheduler
from tiny_families import FAMILIES
from toy import sample, toy_sampler
from vitrail import hookimpl
from vitrail.core.config.loader import Loader
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

WINDOWS = {
    "patching": {"type": "windows"},
    "fusion": "average",
    "extra_views": [{"patching": {"type": "dilated"}, "fusion": "scatter", "weight": 0.5}],
}
CALL = {"height": 128, "width": 128, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}


class Shown:
    """What the network is shown at the first step, view by view, (step of the view's lattice, input)."""

    def __init__(self):
        self.inputs = []

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        if step.index == 0:
            self.inputs += [(view.vertical.step, row) for view, row in zip(rows.views, rows.model_input, strict=True)]
        return (yield)


@pytest.mark.parametrize(("index", "factor"), [(10, 1.087), (24, 1.048), (40, 1.019)])
def test_the_published_factors_of_a_scale_that_came_too_early(index, factor):
    scheduler = new_scheduler("EulerDiscreteScheduler")
    stepper = Stepper(scheduler, 50)
    assert stepper.scale_ratio(index) == pytest.approx(factor, abs=5e-4)
    own, following = (math.sqrt(float(scheduler.sigmas[i]) ** 2 + 1) for i in (index, index + 1))
    assert stepper.scale_ratio(index) == pytest.approx(own / following)


@pytest.mark.parametrize("row_batch", [1, 4])
def test_views_after_the_first_batch_and_further_families_have_the_scale_of_the_next_step(row_batch):
    def shown(**options):
        seen = Shown()
        sampler = toy_sampler(WINDOWS | options, plugins=[("shown", seen)])
        return sample(sampler, row_batch=row_batch), seen.inputs

    (plain, right), (parity, wrong) = shown(), shown(scale_batch=4)
    scheduler = new_scheduler("EulerDiscreteScheduler")
    stepper = Stepper(scheduler, 4)
    ratio = stepper.scale_ratio(0)
    assert ratio > 1.1 and len(right) == len(wrong) == 9 + 4
    for number, ((stride, own), (_, theirs)) in enumerate(zip(right, wrong, strict=True)):
        expected = own if number < 4 and stride == 1 else own * ratio
        torch.testing.assert_close(theirs, expected)
    assert not torch.allclose(plain, parity, atol=1e-2)


@frozen
class Copied:
    """Gives every view latents of its own, equal to those it had."""

    needs = frozenset()
    point = "inputs"

    def init(self):
        """No state."""

    def guide(self, step, subject, scene, state):
        """A copy."""
        return subject.clone(), state


def test_views_with_latents_of_their_own_have_that_scale_too():
    seen = []
    for guidance in ((), (Copied(),)):
        shown, sampler = Shown(), toy_sampler(WINDOWS | {"scale_batch": 4})
        stages = [evolve(stage, guidance=guidance) for stage in sampler.composition.stages]
        made = evolve(sampler.composition, stages=stages)
        sample(Sampler(sampler.backbone, made, model="analytic", plugins=[("shown", shown)]))
        seen.append(torch.stack([row for stride, row in shown.inputs if stride == 1]))
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_where_no_input_is_scaled_there_is_nothing_to_scale_wrongly(name):
    def latents(**options):
        return sample(toy_sampler(WINDOWS | options, scheduler=new_scheduler(name)))

    assert torch.equal(latents(scale_batch=1), latents())


def test_crops_are_those_of_a_padded_canvas_on_the_network_that_is_told():
    pipe = FAMILIES["sdxl"]()

    def told(*sets):
        seen = []
        hook = pipe.unet.register_forward_pre_hook(
            lambda _, args, kwargs: seen.extend(kwargs["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True
        )
        try:
            latents = Sampler.from_pipeline(pipe, load_method("demofusion", sets))("a fox", **CALL).latents
        finally:
            hook.remove()
        return latents, seen

    still = "stages.1.patching.jitter=false"
    plain, usual = told(still)
    parity, padded = told(still, "stages.1.sizes={crop='padded'}")
    crops = [(y, x) for y in (0, 32, 64) for x in (0, 32, 64)]
    second = [[128, 128, *crop, 128, 128] for crop in [*crops, *[(0, 0)] * 4]]
    assert usual == [[128, 128, 0, 0, 128, 128]] * 2 + second * 2
    moved = [[128, 128, y + 8, x + 8, 128, 128] for y, x in crops] + second[9:]
    assert padded == usual[:2] + moved * 2
    assert not torch.equal(plain, parity)


def test_a_window_of_half_overlap_may_move_by_the_width_of_the_border():
    """DemoFusion's code: a quarter of 128 - 64 cells, 16, that is 128 pixels."""
    from vitrail.backbones.unet_family import time_ids

    known = {"canvas": (2048, 2048)}
    window, lattice = View(Span(64, 128), Span(0, 128)), View(Span(1, 128, 2), Span(0, 128, 2))
    padded = SizeConditioning(crop="padded")
    assert time_ids(padded, window, known, 8) == (2048, 2048, 512 + 128, 128, 2048, 2048)
    assert time_ids(SizeConditioning(), window, known, 8) == (2048, 2048, 512, 0, 2048, 2048)
    assert time_ids(padded, lattice, known, 8) == (2048, 2048, 0, 0, 2048, 2048)


@pytest.mark.parametrize("method", ["cutdiffusion", "asg", "asg-plus", "asg-limit"])
def test_structure_ends_after_half_of_any_number_of_steps(method):
    """CutDiffusion's code compares a step with steps times share, so with 25 steps its structure would never end."""
    composition = load_method(method)
    assert composition.boundaries(50) == (25, 50)
    assert composition.boundaries(25) == (13, 25)
    for num_steps in range(2, 60):
        structure, everything = composition.boundaries(num_steps)
        assert 0 < structure < everything == num_steps and abs(structure - num_steps / 2) <= 0.5


def test_switches_are_off_and_checked():
    loader = Loader(build_registry())
    stage = load_method("demofusion").stages[1]
    assert stage.scale_batch is None and stage.sizes.crop == "view"
    with pytest.raises(ConfigError, match="scale_batch"):
        load_method("demofusion", ["stages.1.scale_batch=0"])
    with pytest.raises(ConfigError, match="crop"):
        loader.structure({"crop": "pad"}, SizeConditioning, "test")
