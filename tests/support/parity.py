"""A sampler's ``direct`` beside diffusers' own run of a pipeline, at the training size."""

import functools

import torch

from tiny import NATIVE
from tiny_families import FAMILIES
from vitrail.sampling.sampler import Sampler

SIDE = 8 * NATIVE
CALL = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": SIDE, "width": SIDE, "output_type": "latent"}
UNETS = ("sd", "sdxl")
TEXTS = ("sd", "sdxl", "sd3")


def noise(pipe):
    shape = (1, pipe.vae.config.latent_channels, NATIVE, NATIVE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def wrap(pipe, method="direct"):
    return Sampler.from_pipeline(pipe, method)


def ours(sampler, pipe, prompt="a fox", **call):
    return sampler(prompt, latents=noise(pipe), **(CALL | call)).latents


def theirs(pipe, prompt="a fox", **call):
    return pipe(prompt, latents=noise(pipe), **(CALL | call)).images


def assert_same(sampler, pipe, **call):
    """Ours is theirs; gives it back."""
    made = ours(sampler, pipe, **call)
    assert torch.equal(made, theirs(pipe, **call))
    return made


def differ(first, second):
    return float((first - second).abs().max()) > 0.01


@functools.cache
def plain(family):
    """A pipeline that nobody changes."""
    return FAMILIES[family]()
