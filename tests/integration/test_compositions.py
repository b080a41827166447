"""Every method end to end on a tiny real network, and the identities between methods."""

import copy

import pytest
import torch

from methods import EACH, METHODS
from tiny import in_double
from vitrail.core.config.run_config import RunConfig
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

CALL = {"height": 128, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}


def latents(pipe, method, *sets, plugins=(), **call):
    composition = load_method(method, sets)
    return Sampler.from_pipeline(pipe, composition, plugins=plugins)("a fox", **(CALL | call)).latents


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_at_any_size_and_repeats_itself(pipe, method):
    """As many rows as were planned, and the same picture again."""
    sampler = Sampler.from_pipeline(pipe, method)
    run = RunConfig(prompt="a fox", height=86, width=117, num_inference_steps=3)
    first, second = sampler.run(run), sampler.run(run)
    assert first.images[0].size == (117, 86)
    assert torch.equal(first.latents, second.latents)
    assert first.report.model_calls == sampler.plan(run).model_calls


@pytest.mark.parametrize("form", ["x0", "literal", "reversed"])
@pytest.mark.parametrize("method", ["asg"])
def test_asg_of_scale_zero_is_cutdiffusion(pipe, method, form):
    sets = ["stages.0.guidance.0.scale=0", f"stages.0.guidance.0.form={form}"]
    assert torch.equal(latents(pipe, method, *sets), latents(pipe, "cutdiffusion"))


def test_cutdiffusion_of_no_structure_steps_is_jittered_multidiffusion(pipe):
    jittered = latents(pipe, "multidiffusion", "stages.0.patching.jitter=true")
    assert torch.equal(latents(pipe, "cutdiffusion", "stages.0.until=0.0"), jittered)


def test_async_with_warmup_throughout_is_sync(pipe):
    warm = latents(pipe, "asg", "stages.0.guidance.0.warmup_steps=100")
    assert torch.equal(warm, latents(pipe, "asg", "stages.0.guidance=[{type='sync', scale=1.0}]"))


def test_async_uses_the_message_of_exactly_one_step_before(pipe):
    assert not torch.equal(latents(pipe, "asg"), latents(pipe, "asg", "stages.0.guidance=['sync']"))


def test_limit_is_full_guidance_by_a_clean_key_view(pipe):
    pipe = in_double(pipe)
    full = latents(
        pipe,
        "asg-plus",
        "stages.0.patching.key=extra",
        "stages.0.masking=none",
        "stages.0.guidance=['sync']",
        "stages.0.until=1.0",
        "stages.1.until=1.0",
    )
    limit = latents(pipe, "asg-limit", "stages.0.until=1.0")
    torch.testing.assert_close(full, limit)


@pytest.mark.parametrize("method", EACH)
def test_row_batch_changes_nothing_beyond_rounding(pipe, method):
    """In double precision, since gradients and quantiles make much of how a network in single precision rounds."""
    exact = in_double(pipe)
    wide = latents(exact, method, row_batch=64, num_inference_steps=2)
    for row_batch in (1, 5):
        narrow = latents(exact, method, row_batch=row_batch, num_inference_steps=2)
        torch.testing.assert_close(narrow, wide)


def test_seed_of_a_later_picture_is_seed_plus_index(pipe):
    both = latents(pipe, "asg-plus", seed=3, num_images=2)
    assert torch.equal(both[1:], latents(pipe, "asg-plus", seed=4))


@pytest.mark.parametrize("method", EACH)
def test_a_run_from_a_picture_does_the_last_steps_and_no_others(pipe, method):
    picture = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(1))
    sampler, seen = Sampler.from_pipeline(pipe, method), []
    call = {"height": 72, "width": 96, "num_inference_steps": 10, "strength": 0.7, "output_type": "latent"}
    result = sampler("a fox", image=picture, callback_on_step_end=lambda *given: seen.append(given[1]), **call)
    assert seen == list(range(len(seen))) and result.report.steps == len(seen)
    times = 1 + sampler.composition.stages[0].repeats
    assert seen[-1] == 6 * times or sampler.composition.cascade is not None  # the last seven of ten steps
    assert result.latents.isfinite().all() and "image" in result.recipes[0].given


@pytest.mark.parametrize("method", EACH)
def test_all_steps_from_a_picture_are_a_run_from_its_noised_latents(pipe, method):
    run = RunConfig(prompt="", height=96, width=128, num_inference_steps=3)
    first = Sampler.from_pipeline(pipe, method).run_plan(run, 0).phases[0].canvas
    generator = torch.Generator().manual_seed(2)
    image, noise = (torch.randn(1, 4, first.height, first.width, generator=generator) for _ in range(2))
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(3)
    start = (image + noise * scheduler.sigmas[0]) / scheduler.init_noise_sigma
    call = {"height": 96, "width": 128, "num_inference_steps": 3}
    exact = in_double(pipe)
    from_picture = latents(exact, method, **call, image=image, latents=noise, strength=1.0)
    torch.testing.assert_close(from_picture, latents(exact, method, **call, latents=start), rtol=1e-5, atol=1e-4)
