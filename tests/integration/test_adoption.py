"""Adopting a pipeline is one check of all its parts, before anything is computed."""

import diffusers
import pytest
import torch
from diffusers import DDIMInverseScheduler, DPMSolverMultistepInverseScheduler, FlowMatchEulerDiscreteScheduler

from adapters import control_network, controlled, with_ip_adapter
from parity import CALL, TEXTS, ours, theirs, wrap
from tiny_families import FAMILIES, WIDTH_2
from vitrail.errors import CapabilityError, ConfigError, ModelError, VitrailError
from vitrail.sampling.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

NETWORKS = {"sd": "unet", "sdxl": "unet", "sd3": "transformer"}


def refused(pipe, method="direct"):
    """What adopting a pipeline is refused with."""
    with pytest.raises(VitrailError) as caught:
        Sampler.from_pipeline(pipe, method)
    return str(caught.value)


@pytest.mark.parametrize("wrapper", [torch.nn.DataParallel])
@pytest.mark.parametrize("family", TEXTS)
def test_a_wrapped_network_is_named_with_the_way_out_of_it(family, wrapper):
    pipe, name = FAMILIES[family](), NETWORKS[family]
    setattr(pipe, name, wrapper(getattr(pipe, name)))
    told = refused(pipe)
    assert f"the {name} of {type(pipe).__name__} is wrapped in DataParallel" in told
    assert f"set pipe.{name} = pipe.{name}.module" in told


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("part", ["network", "vae"])
def test_a_part_of_an_unknown_class_is_named_with_those_that_are_served(family, part):
    pipe = FAMILIES[family]()
    name = NETWORKS[family] if part == "network" else part
    setattr(pipe, name, torch.nn.Identity())
    told = refused(pipe)
    assert f"the {name} of {type(pipe).__name__} is of class Identity, which is not served; give one of class" in told
    assert type(getattr(FAMILIES[family](), name)).__name__ in told


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "tokenizer", "image_encoder"])
@pytest.mark.parametrize("family", TEXTS)
def test_what_encodes_is_of_transformers(family, part):
    pipe = FAMILIES[family]()
    if not hasattr(pipe, part) or (family, part) == ("sd3", "image_encoder"):
        pytest.skip(f"{family} is not run with {part}")
    setattr(pipe, part, torch.nn.Identity())
    told = (
        f"the {part} of {type(pipe).__name__} is of class Identity, which is not served; give one of class PreTrained"
    )
    assert told in refused(pipe)


@pytest.mark.parametrize("family", TEXTS)
def test_a_subclass_of_a_served_class_is_served(family):
    pipe = FAMILIES[family]()
    before = theirs(pipe)
    own = type("Own", (type(pipe.vae),), {})
    pipe.vae.__class__ = own
    assert torch.equal(ours(wrap(pipe), pipe), before)


def test_every_problem_is_told_at_once():
    pipe = FAMILIES["sdxl"]()
    pipe.unet, pipe.vae = torch.nn.DataParallel(pipe.unet), torch.nn.Identity()
    pipe.scheduler = DDIMInverseScheduler()
    told = refused(pipe)
    assert all(part in told for part in ("DataParallel", "Identity", "DDIMInverseScheduler must fall"))


def test_a_missing_part_is_named_with_what_to_do():
    pipe = FAMILIES["sd"]()
    pipe.vae = None
    pipe.scheduler = None
    told = refused(pipe)
    assert "StableDiffusionPipeline has no vae; load it" in told
    assert "StableDiffusionPipeline has no scheduler; give one of diffusers' schedulers" in told


# ---------------------------------------------------------------- the refiner, and pipelines without encoders


def refiner():
    """A tiny refiner: one encoder, and a U-Net that is told five numbers, the last an aesthetic score."""
    pipe = FAMILIES["sdxl"]()
    unet = diffusers.UNet2DConditionModel.from_config(
        pipe.unet.config, projection_class_embeddings_input_dim=5 * 8 + WIDTH_2, cross_attention_dim=WIDTH_2
    )
    parts = pipe.components | {"unet": unet, "text_encoder": None, "tokenizer": None}
    return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)


def test_a_refiner_is_refused_at_adoption():
    assert "the unet of StableDiffusionXLImg2ImgPipeline is a refiner" in refused(refiner())


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_text_without_an_encoder_is_refused_before_the_first_step(family, part):
    pipe = FAMILIES[family]()
    setattr(pipe, part, None)
    with pytest.raises(ConfigError) as caught:
        wrap(pipe)("a fox", callback_on_step_end=lambda *step: pytest.fail("a step was done"), **CALL)
    told = f"{type(pipe).__name__} has no {part} to encode a text with; load it, or give prompt_embeds"
    assert told in str(caught.value)


@pytest.mark.parametrize("family", TEXTS)
def test_embeddings_need_no_encoder(family):
    whole, bare = FAMILIES[family](), FAMILIES[family]()
    more = {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
    made = whole.encode_prompt(
        prompt="a fox",
        negative_prompt="the",
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        **more,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    text = dict(zip(names, made, strict=False))
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        if hasattr(bare, part):
            setattr(bare, part, None)
    assert torch.equal(ours(wrap(bare), bare, "", **text), ours(wrap(whole), whole, negative_prompt="the"))


def test_a_method_that_looks_at_words_needs_a_tokenizer():
    pipe = FAMILIES["sd"]()
    pipe.tokenizer = None
    assert "has no tokenizer, and the method looks at the attention to words" in refused(pipe, "asg")


def test_a_picture_for_an_ip_adapter_needs_a_feature_extractor():
    pipe, call = with_ip_adapter(FAMILIES["sd"]())
    pipe.feature_extractor = None
    with pytest.raises(ConfigError, match="has no feature_extractor, so give ip_adapter_image_embeds"):
        ours(wrap(pipe), pipe, **call)


# ---------------------------------------------------------------- schedulers


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cls", [DDIMInverseScheduler, DPMSolverMultistepInverseScheduler])
def test_a_scheduler_that_goes_from_the_picture_to_noise_is_refused(cls, steps):
    pipe, name = FAMILIES["sd"](), cls.__name__
    sampler = wrap(pipe)
    for refusal in (
        lambda: sampler("a fox", **(CALL | {"scheduler": name, "num_inference_steps": steps})),
        lambda: (setattr(pipe, "scheduler", cls.from_config(pipe.scheduler.config)), wrap(pipe)),
        lambda: sampler("a fox", **(CALL | {"num_inference_steps": steps})),
    ):
        with pytest.raises(CapabilityError, match=f"the timesteps of {name} must fall") as caught:
            refusal()
        assert name.replace("Inverse", "") in str(caught.value)


def test_inverted_sigmas_are_refused():
    pipe = FAMILIES["sd3"]()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    assert "must fall from noise to the picture" in refused(pipe)


def test_no_scheduler_at_all_is_refused_by_its_class():
    pipe = FAMILIES["sd"]()
    pipe.scheduler = torch.nn.Identity()
    assert "is of class Identity, which has no config, set_timesteps, step" in refused(pipe)


# ---------------------------------------------------------------- adapters


def test_an_unknown_pipeline_is_told_every_class_that_is_served():
    pipe = FAMILIES["sd"]()
    inpaint = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ModelError) as caught:
        Sampler.from_pipeline(inpaint, "direct")
    for name in ("StableDiffusionImg2ImgPipeline", "StableDiffusionXLControlNetImg2ImgPipeline"):
        assert name in str(caught.value)
    assert "StableDiffusionImg2ImgPipeline" in refused(object())


def test_a_control_network_of_another_class_is_refused():
    pipe = FAMILIES["sd"]()
    pipe = controlled(pipe, control_network(pipe.unet))
    pipe.controlnet = torch.nn.Identity()
    assert "the controlnet of StableDiffusionControlNetPipeline is of class Identity" in refused(pipe)
