"""Every word of diffusers' calls is one of ours, or is answered with what serves in its place."""

import inspect

import attrs
import diffusers
import numpy as np
import pytest

from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.call_words import CALL_WORDS, OF_A_CALL
from vitrail.core.method.inputs import Extras
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry
from vitrail.sampling.sampler import Sampler

PIPELINES = [
    f"StableDiffusion{kind}{what}Pipeline"
    for kind in ("", "XL", "3")
    for what in ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")
    if hasattr(diffusers, f"StableDiffusion{kind}{what}Pipeline")
]
OURS = {*attrs.fields_dict(RunConfig), *attrs.fields_dict(Extras), *inspect.signature(Sampler.__call__).parameters}


def structured(**fields):
    return Loader(registry()).structure({"prompt": "", **fields}, RunConfig, "test")


def test_pipelines_of_every_family_are_looked_at():
    assert len(PIPELINES) >= 14


@pytest.mark.parametrize("name", PIPELINES)
def test_every_word_of_a_call_is_served_or_answered(name):
    words = set(inspect.signature(getattr(diffusers, name).__call__).parameters) - {"self", "kwargs"}
    assert not words - OURS - set(CALL_WORDS)


def test_no_word_is_both_served_and_answered():
    assert not OURS & set(CALL_WORDS)


def test_the_words_of_a_call_that_a_file_has_not_are_answered_in_a_file():
    assert set(OF_A_CALL) <= set(inspect.signature(Sampler.__call__).parameters)
    assert not set(OF_A_CALL) & {*attrs.fields_dict(RunConfig), *CALL_WORDS}


def test_the_answers_are_told_with_every_other_problem():
    with pytest.raises(ConfigError) as caught:
        structured(generator=None, mask_image=None, guidance_scale=0, widht=64)
    told = str(caught.value)
    assert "has no key 'generator': a file has a seed" in told
    assert "has no key 'mask_image': inpainting is not served" in told
    assert "1 switches guidance off, got 0" in told and "did you mean 'width'?" in told


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_integers_of_numpy_are_integers(kind):
    run = structured(seed=kind(7), num_inference_steps=kind(3), guidance_scale=kind(2))
    assert (run.seed, run.num_inference_steps, run.guidance_scale) == (7, 3, 2.0)
    assert type(run.seed) is int and type(run.guidance_scale) is float


def test_other_scalars_of_numpy():
    run = structured(guidance_scale=np.float32(2.5), prompt=np.str_("a fox"), wrap=np.str_("x"))
    assert (run.guidance_scale, run.prompt, run.wrap) == (2.5, "a fox", "x") and type(run.prompt) is str
    for wrong in ({"seed": np.float64(1.0)}, {"seed": np.bool_(True)}, {"guidance_scale": np.float32("nan")}):
        with pytest.raises(ConfigError):
            structured(**wrong)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match=r"\$\.prompt: expected text in UTF-8, got other bytes in 'a \\udcff'"):
        structured(prompt="a \udcff")
