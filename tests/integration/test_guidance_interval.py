"""Classifier-free guidance in an interval of noise levels: one branch outside, counted, on any number of ranks."""

import math

import pytest
import torch
from attrs import evolve

from toy import ASG, DETAIL, STRUCTURE, toy_sampler
from vitrail.comm import InProcess
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread
from vitrail.testing import make_step

APART = {**STRUCTURE, "patching": {"type": "lattice", "interaction": "none"}}  # ranks are independent
ALWAYS, NEVER, MIDDLE = [0, 1e9], [0, 0], [0.3, 5.0]
CALL = {"guidance_scale": 3.0, "steps": 6, "row_batch": 2}
RUN = RunConfig(prompt="", height=128, width=128, num_inference_steps=6, guidance_scale=3.0)


def within(interval, *stages):
    return [stage | {"guidance_interval": interval} for stage in stages]


def made(*stages):
    return Loader(build_registry()).structure({"stages": list(stages)}, Composition, "test")


def test_all_levels_are_no_interval_and_none_is_no_guidance(pipe):
    """On a network whose branches differ, which those of the toy do not."""

    def latents(*stages, guidance_scale=3.0):
        options = {"height": 72, "width": 136, "num_inference_steps": 4, "output_type": "latent"}
        return Sampler.from_pipeline(pipe, made(*stages))("a fox", guidance_scale=guidance_scale, **options).latents

    stages = (STRUCTURE | {"masking": "attention"}, DETAIL)
    plain, off = latents(*stages), latents(*stages, guidance_scale=1.0)
    assert torch.equal(latents(*within(ALWAYS, *stages)), plain)
    assert torch.equal(latents(*within(NEVER, *stages)), off)
    middle = latents(*within(MIDDLE, *stages))
    assert not torch.equal(middle, plain) and not torch.equal(middle, off)


@pytest.mark.parametrize("interval", [ALWAYS, NEVER, MIDDLE], ids=["always", "never", "middle"])
@pytest.mark.parametrize("stages", [ASG, (APART, DETAIL)], ids=["together", "apart"])
def test_rows_are_counted_and_ranks_make_the_same_picture(stages, interval):
    def program(communicator):
        own = toy_sampler(*within(interval, *stages))
        result = own.run(RUN, spread=Spread(communicator=communicator))
        return result.latents, result.report.model_calls

    sampler = toy_sampler(*within(interval, *stages))
    result, plan = sampler.run(RUN), sampler.plan(RUN)
    assert result.report.model_calls == plan.model_calls
    ended = InProcess(timeout=600).run(3, program)
    assert all(torch.equal(latents, result.latents) for latents, _ in ended)
    assert sum(calls for _, calls in ended) >= plan.model_calls


def test_outside_of_the_interval_half_of_the_rows_is_left(pipe):
    calls = {}
    for name, interval in (("always", ALWAYS), ("never", NEVER), ("middle", MIDDLE)):
        whole = {"patching": "whole", "fusion": "average", "guidance_interval": interval}
        options = {"height": 64, "width": 64, "num_inference_steps": 8, "output_type": "latent"}
        result = Sampler.from_pipeline(pipe, made(whole))("a fox", guidance_scale=3.0, **options)
        calls[name] = result.report.model_calls
    assert calls["always"] == 16 and calls["never"] == 8 and 8 < calls["middle"] < 16


@pytest.mark.parametrize("interval", [[5.0, 0.3], [1.0, 2.0, 3.0], [-1.0, 2.0]])
def test_what_is_no_interval_is_refused(interval):
    with pytest.raises(ConfigError, match="expected two noise levels with 0 <= low <= high"):
        made(*within(interval, DETAIL))


def test_one_level_is_all_above_it():
    steps = [make_step(index=index, num_steps=10) for index in range(10)]
    stage = made(*within([0.5], DETAIL)).stages[0]
    assert [stage.is_guided(step) for step in steps] == [step.noise_level > 0.5 for step in steps]
    assert stage.is_guided(evolve(steps[0], alpha=0.0, sigma=1.0)), "as flows and zero terminal SNR begin"
    with pytest.raises(ValueError, match="expected two noise levels"):
        evolve(stage, guidance_interval=(0.5, math.inf))


@pytest.mark.parametrize("interval", [[0.3, 5.0], [0, 0]], ids=["middle", "never"])
def test_what_guidance_asks_besides_has_the_branches_of_the_step(pipe, interval):
    """The small copy of ``upsample`` is asked at another noise level, which may lie on the other side of an end."""
    method = load_method("upsample-guidance", [f"stages.0.guidance_interval={interval}"])
    sampler = Sampler.from_pipeline(pipe, method)
    run = RunConfig(prompt="a fox", height=128, width=128, num_inference_steps=8, guidance_scale=3.0)
    assert sampler.run(run, output_type="latent").report.model_calls == sampler.plan(run).model_calls


def test_guidance_that_combines_branches_needs_both():
    with pytest.raises(ConfigError, match=r"guidance_interval: \w+ combines both branches at every step"):
        made(*within(MIDDLE, DETAIL | {"guidance": ["noise-damped"]}))
