"""Upsample guidance: timesteps of equal signal-to-noise ratio, what replaces the low band, when nothing is asked."""

import math

import pytest
import torch
from attrs import evolve

from schedulers import READ, new_scheduler
from tiny_families import FAMILIES
from vitrail.backbones.analytic import MixturePrior
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.guidance.upsample import UpsampleGuidance, pooled
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler
from vitrail.testing import make_step

FORMS = {  # scheduler, its options
    "VE": ("EulerDiscreteScheduler", {}),
    "VP": ("DDIMScheduler", {}),
    "velocity": ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    "clean": ("DDIMScheduler", {"prediction_type": "sample"}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
SIZES = [(16, 16), (17, 30), (33, 21)]


def schedule_of(form, steps=50):
    name, options = FORMS[form]
    return Stepper(new_scheduler(name, **options), steps).schedule


def normal(*shape, name="x"):
    return Streams(0).normal(shape, name).double()


def network(model_input):
    """Any function."""
    return torch.tanh(model_input + 0.3 * model_input.roll(1, -1)) * 1.5


def scene_of(schedule, step, size, asked, native=8):
    def ask(step, model_input, view, sizes=None):
        asked.append((step, model_input, view, sizes))
        return network(model_input)

    return GuidanceContext(
        canvas=Canvas(*size, native),
        streams=Streams(1),
        ask=ask,
        step_at=lambda alpha, sigma: schedule.step_at(step, alpha, sigma),
    )


def refuse(*_, **__):
    raise AssertionError("the network was asked")


@pytest.mark.parametrize("name", READ)
def test_the_noise_of_a_step_leads_to_its_own_timestep(name):
    schedule = Stepper(new_scheduler(name), 20).schedule
    for step in schedule.steps([20]):
        found = schedule.step_at(step, step.alpha, step.sigma)
        assert abs(found.timestep - step.timestep) <= 0.5
        assert found.norm == pytest.approx(1.0) and found.sigma * step.alpha == pytest.approx(found.alpha * step.sigma)


@pytest.mark.parametrize(
    ("m", "timestep", "tau", "power"),
    [
        (2, 981, 853, 1.983),
        (2, 781, 607, 1.881),
        (2, 581, 374, 1.612),
        (2, 401, 205, 1.328),
        (4, 981, 696, None),
        (4, 781, 402, None),
        (4, 581, 184, None),
    ],
)
@pytest.mark.parametrize("form", ["VE", "VP"])
def test_published_timesteps(form, m, timestep, tau, power):
    schedule = schedule_of(form)
    step = next(step for step in schedule.steps([50]) if step.timestep == timestep)
    assert schedule.step_at(step, step.alpha, step.sigma / m).timestep == tau
    if power is not None:
        assert step.norm / math.hypot(step.alpha, step.sigma / m) == pytest.approx(power, abs=5e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_full_guidance_replaces_the_low_band_of_the_noise(form, size):
    """D(n) = n_L / m, for any size."""
    schedule = schedule_of(form)
    for step, m in ((schedule.steps([50])[3], 2), (schedule.steps([50])[12], 3)):
        asked, x = [], step.norm * normal(1, 4, *size)
        subject = Prediction(x, network(x / step.norm), step)
        guided, _ = UpsampleGuidance(factor=m).guide(step, subject, scene_of(schedule, step, size, asked), None)
        [(quiet, model_input, view, sizes)] = asked
        small = Prediction(model_input, network(model_input), quiet)
        assert view.shape == model_input.shape[-2:] == tuple(math.ceil(side / m) for side in size)
        assert (sizes.original, sizes.target, sizes.crop) == ("native", "native", "none")
        torch.testing.assert_close(pooled(guided.noise, m), small.noise / m, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(pooled(guided.clean, m), small.clean, rtol=1e-6, atol=1e-8)
        high = (
            subject.noise
            - pooled(subject.noise, m).repeat_interleave(m, -2).repeat_interleave(m, -1)[..., : size[0], : size[1]]
        )
        low = guided.noise - high
        torch.testing.assert_close(low[..., 0, 0], small.noise[..., 0, 0] / m, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_the_small_copy_is_the_mean_of_the_picture_with_unit_noise_in_the_networks_form(form):
    schedule, m = schedule_of(form), 2
    step = schedule.steps([50])[7]
    clean, noise = normal(1, 4, 16, 16, name="clean"), normal(1, 4, 16, 16, name="noise")
    x, asked = step.alpha * clean + step.sigma * noise, []
    UpsampleGuidance().guide(step, Prediction(x, network(x), step), scene_of(schedule, step, (16, 16), asked), None)
    [(quiet, model_input, _, _)] = asked
    torch.testing.assert_close(model_input, quiet.alpha * pooled(clean, m) + quiet.sigma * m * pooled(noise, m))
    assert quiet.sigma / quiet.alpha == pytest.approx(step.sigma / step.alpha / m) and quiet.norm == pytest.approx(1)
    if form == "flow":
        assert quiet.timestep == pytest.approx(1000 * quiet.sigma)


def test_exploding_and_preserving_schedulers_and_velocities_are_corrected_alike():
    prior, found = MixturePrior(normal(3, 4, 1, 1, name="templates"), 0.05), {}
    clean, noise = normal(1, 4, 16, 16, name="clean"), normal(1, 4, 16, 16, name="noise")
    for form in ("VE", "VP", "velocity"):
        schedule = schedule_of(form)
        step = next(step for step in schedule.steps([50]) if step.timestep == 781)

        def answer(model_input, step):
            mean = prior.posterior_mean(model_input, step.alpha, step.sigma)
            return Prediction(model_input, model_input * 0, step).with_clean(mean).model_output

        unit = evolve(step, alpha=step.alpha / step.norm, sigma=step.sigma / step.norm)
        x = step.alpha * clean + step.sigma * noise
        scene = evolve(
            scene_of(schedule, step, (16, 16), []),
            ask=lambda quiet, model_input, view, sizes=None, answer=answer: answer(model_input, quiet),
        )
        subject = Prediction(x, answer(x / step.norm, unit), step)
        guided, _ = UpsampleGuidance(scale=0.7).guide(step, subject, scene, None)
        assert (guided.noise - subject.noise).abs().max() > 1e-3
        found[form] = guided.noise
    torch.testing.assert_close(found["VE"], found["VP"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["velocity"], found["VP"], rtol=1e-4, atol=1e-5)


def test_a_flow_that_begins_with_noise_alone_is_guided():
    schedule = schedule_of("flow")
    step = schedule.steps([50])[0]
    assert step.alpha == 0.0
    asked, x = [], normal(1, 4, 16, 16)
    subject = Prediction(x, network(x), step)
    guided, _ = UpsampleGuidance().guide(step, subject, scene_of(schedule, step, (16, 16), asked), None)
    [(quiet, model_input, _, _)] = asked
    assert quiet.timestep == 1000.0 and torch.allclose(model_input, 2 * pooled(x, 2))
    torch.testing.assert_close(pooled(guided.clean, 2), model_input - network(model_input))


@pytest.mark.parametrize(
    ("options", "size", "timestep"),
    [
        ({"scale": 0.0}, (16, 16), 900.0),
        ({"until": 0.0}, (16, 16), 900.0),
        ({"until": 0.6}, (16, 16), 399.0),
        ({"factor": 1}, (16, 16), 900.0),
        ({}, (8, 8), 900.0),
        ({}, (8, 16), 900.0),
    ],
)
def test_where_nothing_is_to_be_done_nothing_is_asked_or_changed(options, size, timestep):
    step = make_step(timestep=timestep)
    subject = Prediction(normal(1, 4, *size), normal(1, 4, *size, name="y"), step)
    scene = GuidanceContext(canvas=Canvas(*size, 8), streams=Streams(0), ask=refuse, step_at=refuse)
    guidance = UpsampleGuidance(**options)
    assert guidance.guide(step, subject, scene, None)[0] is subject
    assert guidance.cost(step, Canvas(*size, 8), 2).model_calls == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_asked_at_the_timestep_and_with_the_sizes_of_a_small_picture(family):
    pipe = FAMILIES[family]()
    sampler = Sampler.from_pipeline(pipe, "upsample-guidance")
    call = {"height": 128, "width": 136, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    network, seen = sampler.backbone.network, []

    def note(module, args, kwargs):
        latents = args[0] if args else kwargs["hidden_states"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        added = kwargs.get("added_cond_kwargs") or {}
        seen.append((tuple(latents.shape[-2:]), float(timestep.flatten()[0]), added.get("time_ids")))

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        guided = sampler("a fox", **call).latents
    finally:
        hook.remove()
    schedule = sampler.run_plan(RunConfig(prompt="", height=128, width=136, num_inference_steps=3), 0)
    steps = [step for step in schedule.steps() if step.timestep >= 400]
    large, small = [each for each in seen if each[0][0] == 16], [each for each in seen if each[0][0] == 8]
    assert len(large) == 3 and len(small) == len(steps) >= 1
    for step, (_, timestep, time_ids) in zip(steps, small, strict=True):
        assert timestep == pytest.approx(
            schedule.phases[0].stepper.schedule.step_at(step, step.alpha, step.sigma / 2).timestep
        )
        assert timestep < step.timestep or step.alpha == 0
        assert time_ids is None or time_ids.unique(dim=0).tolist() == [[64, 64, 0, 0, 64, 64]]
    plain = Sampler.from_pipeline(pipe, "direct")("a fox", **call).latents
    assert guided.isfinite().all() and (guided - plain).abs().max() > 1e-3
    off = load_method("upsample-guidance", ["stages.0.guidance.0.scale=0"])
    assert torch.equal(Sampler.from_pipeline(pipe, off)("a fox", **call).latents, plain)
