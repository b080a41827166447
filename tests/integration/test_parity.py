"""``whole`` without guidance is diffusers' own pipeline, bit for bit."""

import diffusers
import pytest
import torch

from often import every
from tiny import NATIVE
from vitrail.sampling.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

DETERMINISTIC = [
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "KDPM2DiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
]


@pytest.fixture
def scheduled(pipe):
    """The pipeline with another scheduler, put back afterwards."""
    before = pipe.scheduler

    def change(name, **options):
        if "clip_sample" in getattr(diffusers, name).__init__.__code__.co_varnames:
            options["clip_sample"] = False
        pipe.scheduler = getattr(diffusers, name).from_config(before.config, **options)
        return pipe

    yield change
    pipe.scheduler = before


@pytest.mark.parametrize("guidance_scale", every(2, [5.0, 1.0]))
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_whole_without_guidance_is_the_plain_pipeline(scheduled, name, prediction, guidance_scale):
    pipe = scheduled(name, prediction_type=prediction)
    noise = torch.randn(1, 4, NATIVE, NATIVE, generator=torch.Generator().manual_seed(1))
    call = {"num_inference_steps": 5, "guidance_scale": guidance_scale, "height": 8 * NATIVE, "width": 8 * NATIVE}
    theirs = pipe("a fox", latents=noise, output_type="pt", **call).images[0]
    ours = Sampler.from_pipeline(pipe, "direct")("a fox", latents=noise, output_type="pt", **call).images[0]
    assert torch.equal(ours, theirs)


def test_pipeline_is_left_as_it_was_found(pipe):
    weights = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    processors, hooks = dict(pipe.unet.attn_processors), [len(m._forward_pre_hooks) for m in pipe.unet.modules()]
    config = dict(pipe.scheduler.config)
    Sampler.from_pipeline(pipe, "asg")("a fox", height=128, width=128, num_inference_steps=2)
    assert all(torch.equal(v, weights[k]) for k, v in pipe.unet.state_dict().items())
    assert pipe.unet.attn_processors == processors
    assert [len(m._forward_pre_hooks) for m in pipe.unet.modules()] == hooks
    assert dict(pipe.scheduler.config) == config
