"""What is given empty is given: an empty text is a text, 0 is a number, and nothing stands for "not given" but None."""

import attrs
import pytest
import torch

from adapters import build
from parity import CALL, TEXTS, assert_same, differ, ours, plain, theirs, wrap
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry
from vitrail.sampling.recipe import Recipe


@pytest.mark.parametrize("negative", [None, ""])
@pytest.mark.parametrize("family", TEXTS)
def test_an_empty_negative_prompt_is_a_text_as_in_the_plain_pipeline(family, negative):
    pipe = plain(family)
    made = assert_same(wrap(pipe), pipe, negative_prompt=negative)
    if family == "sdxl":  # which is trained on zeros where there is no text
        other = ours(wrap(pipe), pipe, negative_prompt=None if negative == "" else "")
        assert differ(made, other)


def test_an_empty_negative_prompt_and_its_embeddings_are_one_too_many():
    pipe, text = plain("sd"), {"negative_prompt_embeds": torch.zeros(1, 16, 32)}
    with pytest.raises(ConfigError, match="say the same thing"):
        ours(wrap(pipe), pipe, negative_prompt="", **text)


@pytest.mark.parametrize("call", [{"clip_skip": 0}, {"cross_attention_kwargs": {}}, {"guidance_rescale": 0.0}], ids=str)
def test_what_is_given_as_zero_or_empty_counts_as_in_the_plain_pipeline(call):
    pipe = plain("sdxl")
    assert_same(wrap(pipe), pipe, **call)


def test_a_hint_of_no_weight_is_no_hint():
    pipe, more = build("sd", "controlnet")
    call = {"controlnet_conditioning_scale": 0, "control_image": more["control_image"]}
    made = ours(wrap(pipe), pipe, **call)
    assert torch.equal(made, ours(wrap(plain("sd")), pipe))
    given = {"image": more["control_image"], "controlnet_conditioning_scale": 0.0}
    assert torch.equal(made, theirs(pipe, **given))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"clip_skip": -1}, "clip_skip must be a whole number, 0 or more"),
        ({"clip_skip": 40}, "clip_skip=40: the text encoder has 1 to skip"),
        ({"prompt_embeds": torch.zeros(1, 0, 32)}, "prompt_embeds must be of one prompt"),
        ({"image": ""}, "must be left out or say something, got ''"),
        ({"scheduler": ""}, "must be left out or say something, got ''"),
        ({"num_images": 0}, "must be >= 1, got 0"),
        ({"row_batch": 0}, "must be >= 1, got 0"),
        ({"guidance_scale": 0}, "must be >= 1, where 1 switches guidance off, got 0"),
    ],
)
def test_what_cannot_be_empty_is_refused(call, told):
    with pytest.raises(ConfigError) as caught:
        wrap(plain("sd"))("a fox", **(CALL | call))
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["method", "model", "model_config", "variant", "revision", "image", "scheduler"])
def test_an_option_of_a_run_says_something_or_is_left_out(name):
    with pytest.raises(ConfigError, match="must be left out or say something"):
        Loader(registry()).structure({"prompt": "", name: " "}, RunConfig, "test")


def test_a_recipe_of_before_means_the_same_picture():
    run = attrs.asdict(RunConfig(prompt="a fox"))
    now = {"vitrail": "0.1.0", "recipe": "2"}
    old, new = ({"run": run | {"negative_prompt": ""}, "method": None, "versions": v} for v in ({"vitrail": "0"}, now))
    assert Recipe.read(old).run["negative_prompt"] is None
    assert Recipe.read(new).run["negative_prompt"] == ""
