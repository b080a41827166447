"""``direct`` is diffusers' own pipeline of every family, and ``multidiffusion`` its panorama pipeline."""

import functools

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline

import measure_parity
from often import often
from tiny import PANORAMA_NATIVE, in_double, small_unet, tiny_pipeline
from tiny_families import FAMILIES, SCALED
from vitrail.core.config.loader import Loader
from vitrail.core.method.composition import Composition
from vitrail.sampling.discovery import registry
from vitrail.sampling.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

CASES = [
    (family, name, path)
    for family in FAMILIES
    for name in measure_parity.names_for(family)
    for path in measure_parity.paths_for(family)
]
USUAL = ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
OFTEN = often(CASES, lambda case: case[2] == "txt2img" or case[1] in USUAL)
STRIDE = 8


@functools.cache
def pipeline(family):
    return measure_parity.quiet(FAMILIES[family]())


@pytest.mark.parametrize(("family", "name", "path"), OFTEN)
def test_direct_is_the_plain_pipeline_bit_for_bit(family, name, path):
    assert measure_parity.difference(pipeline(family), name, path) == 0


@pytest.fixture(scope="module")
def panorama():
    """In double precision, since networks make much of how they round."""
    scheduler = DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = tiny_pipeline(scheduler)
    pipe.unet = small_unet()
    pipe = in_double(pipe)
    components = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    theirs = measure_parity.quiet(StableDiffusionPanoramaPipeline(**components, requires_safety_checker=False))
    return pipe, theirs


@pytest.mark.parametrize(("wrap", "row_batch", "guidance_scale"), [("none", 3, 5.0), ("x", 4, 1.0)])
def test_multidiffusion_is_the_panorama_pipeline(panorama, wrap, row_batch, guidance_scale):
    """They step every window and average the results, which for DDIM is the same up to rounding."""
    pipe, theirs = panorama
    shape = (1, 4, PANORAMA_NATIVE, PANORAMA_NATIVE + STRIDE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    call = {"height": 8 * shape[2], "width": 8 * shape[3], "num_inference_steps": 2}
    call["guidance_scale"] = guidance_scale
    there = theirs("a fox", latents=noise.double(), circular_padding=wrap == "x", output_type="latent", **call).images
    patching = {"type": "windows", "overlap": 1 - STRIDE / PANORAMA_NATIVE}
    tables = {"stages": [{"patching": patching, "fusion": "average"}]}
    method = Loader(registry()).structure(tables, Composition, "test")
    options = {"wrap": wrap, "row_batch": row_batch, "output_type": "latent"}
    here = Sampler.from_pipeline(pipe, method)("a fox", latents=noise, **options, **call).latents
    assert here.shape == there.shape
    torch.testing.assert_close(here.double(), there, rtol=0, atol=2e-5)
