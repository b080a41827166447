"""A pipeline as users bring it: ``direct`` at the training size is diffusers' own run of it, bit for bit."""

import functools

import diffusers
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from adapters import (
    build,
    hint,
    inversion,
    ip_adapter,
    lora,
    lora_layers,
    picture,
    with_inversion,
    with_ip_adapter,
    with_lora,
)
from parity import CALL, SIDE, TEXTS, UNETS, assert_same, differ, ours, plain, theirs, wrap
from tiny_families import FAMILIES
from vitrail.backbones.conditioning.words import content_tokens
from vitrail.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks


@functools.cache
def text_of(family, prompt="a fox", negative="the"):
    """What the pipeline's own ``encode_prompt`` makes of two prompts, by the names of a call."""
    pipe, more = plain(family), {"prompt_2": None, "prompt_3": None} if family == "sd3" else {}
    made = pipe.encode_prompt(
        prompt=prompt,
        negative_prompt=negative,
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        **more,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return dict(zip(names, made, strict=False))


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    "call",
    [
        {"negative_prompt": "the"},
        {"negative_prompt": "the", "guidance_scale": 1.0},
        {"clip_skip": 1},
        {"guidance_rescale": 0.7},
    ],
    ids=lambda call: " ".join(call),
)
@pytest.mark.parametrize("family", TEXTS)
def test_what_a_call_says_counts_as_in_the_plain_pipeline(family, call):
    if family == "sd3" and "guidance_rescale" in call:
        pytest.skip("diffusers' pipeline has none")
    if family == "sd" and "clip_skip" in call and not hasattr(plain(family).text_encoder, "text_model"):
        with pytest.raises(ConfigError, match=r"clip_skip: diffusers' pipelines .* install transformers below 5"):
            ours(wrap(plain(family)), plain(family), **call)
        return
    made = assert_same(wrap(plain(family)), plain(family), **call)
    if "guidance_scale" not in call:
        assert differ(made, ours(wrap(plain(family)), plain(family)))


@pytest.mark.parametrize("family", TEXTS)
def test_embeddings_stand_for_their_prompts(family):
    pipe, text = plain(family), text_of(family)
    sampler, positive = wrap(pipe), {name: value for name, value in text.items() if "negative" not in name}
    made = ours(sampler, pipe, "something else", **text)
    assert torch.equal(made, theirs(pipe, None, **text))
    assert torch.equal(made, ours(sampler, pipe, negative_prompt="the"))
    for call in ({}, {"guidance_scale": 1.0}, {"negative_prompt": "the"}):
        assert torch.equal(ours(sampler, pipe, "", **positive, **call), theirs(pipe, None, **positive, **call))


EMBEDS = torch.zeros(1, 16, 32)


@pytest.mark.parametrize(
    ("family", "call", "told"),
    [
        ("sd", {"prompt_embeds": EMBEDS[:, :8], "negative_prompt_embeds": EMBEDS}, "must be of one shape"),
        ("sd", {"prompt_embeds": EMBEDS.expand(2, -1, -1)}, "prompt_embeds must be of one prompt"),
        ("sd", {"negative_prompt": "the", "negative_prompt_embeds": EMBEDS}, "say the same thing"),
        ("sd", {"pooled_prompt_embeds": EMBEDS[0]}, "has no use for 'pooled_prompt_embeds'"),
        ("sdxl", {"prompt_embeds": EMBEDS}, "prompt_embeds need pooled_prompt_embeds beside them"),
        ("sdxl", {"negative_pooled_prompt_embeds": EMBEDS}, "need negative_prompt_embeds beside them"),
        ("sd", {"joint_attention_kwargs": {"scale": 1.0}}, "did you mean 'cross_attention_kwargs'?"),
        ("sd3", {"cross_attention_kwargs": {"scale": 1.0}}, "did you mean 'joint_attention_kwargs'?"),
        ("sd", {"cross_attention_kwargs": {"ip_adapter_masks": EMBEDS}}, "['ip_adapter_masks'] may lie on the picture"),
        ("sd", {"ip_adapter_image": picture()}, "has no use for 'ip_adapter_image'"),
        ("sd", {"prompt_embeds": EMBEDS.numpy()}, "prompt_embeds must be a tensor, got ndarray; torch.from_numpy"),
        ("sdxl", {"pooled_prompt_embeds": [0.0]}, "pooled_prompt_embeds must be a tensor, got list"),
        ("sd", {"latents": EMBEDS.numpy()}, "latents must be a tensor, got ndarray"),
        ("sd", {"cross_attention_kwargs": 0.7}, "cross_attention_kwargs must be a table of numbers, such as"),
    ],
)
def test_what_a_pipeline_cannot_use_is_refused_before_the_first_step(family, call, told):
    with pytest.raises(ConfigError) as caught:
        wrap(plain(family))("a fox", callback_on_step_end=lambda *step: pytest.fail("a step was done"), **CALL, **call)
    assert told in str(caught.value)


def test_all_problems_are_told_at_once():
    call = {"prompt_embeds": EMBEDS, "cross_attention_kwargs": {"gligen": {}}, "control_image": picture()}
    with pytest.raises(ConfigError) as caught:
        wrap(plain("sdxl"))("a fox", **CALL, **call)
    assert all(told in str(caught.value) for told in ("pooled_prompt_embeds", "gligen", "no use for 'control_image'"))


def test_a_scheduler_that_comes_later_is_used_by_the_next_call():
    pipe = FAMILIES["sd"]()
    sampler = wrap(pipe)
    before = assert_same(sampler, pipe)
    for name in ("HeunDiscreteScheduler", "DPMSolverMultistepScheduler"):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        assert differ(assert_same(sampler, pipe), before)


def test_several_pictures_are_several_runs():
    sampler = wrap(plain("sd"))
    both = sampler("a fox", seed=4, num_images=2, **CALL).latents
    apart = [sampler("a fox", seed=seed, **CALL).latents for seed in (4, 5)]
    assert torch.equal(both, torch.cat(apart))


@pytest.mark.parametrize("family", TEXTS)
def test_a_picture_to_start_from_may_have_any_size_and_kind(family):
    sampler, values = wrap(plain(family)), (255 * hint(101, 67)).round() / 255
    processor = VaeImageProcessor()
    drawn = processor.numpy_to_pil(processor.pt_to_numpy(values))[0]
    for given in (values, drawn):
        assert torch.allclose(sampler.backbone.read_picture(given, 101, 67), 2 * values - 1, atol=1e-6)
    call = CALL | {"height": 101, "width": 67, "strength": 0.5}
    assert differ(sampler("a fox", image=drawn, **call).latents, sampler("a fox", **call).latents)


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("family", TEXTS)
def test_a_lora_counts_whether_it_is_loaded_before_wrapping_or_after(family):
    pipe = FAMILIES[family]()
    sampler = wrap(pipe)
    without = assert_same(sampler, pipe)
    with_lora(pipe)
    made = assert_same(sampler, pipe)
    assert torch.equal(ours(wrap(pipe), pipe), made)
    assert differ(made, without)
    pipe.unload_lora_weights()
    assert torch.equal(assert_same(sampler, pipe), without)


def test_a_lora_from_a_folder(tmp_path):
    pipe = FAMILIES["sd"]()
    layers = lora_layers(pipe.unet, ["to_q", "to_v"], seed=3)
    pipe.save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipe.load_lora_weights(tmp_path)
    assert differ(assert_same(wrap(pipe), pipe), theirs(plain("sd")))


@pytest.mark.filterwarnings("ignore:Already found a .peft_config.")  # of a second LoRA
def test_what_is_done_to_loras_later_counts():
    pipe = FAMILIES["sd"]()
    sampler = wrap(pipe)
    for name, state in [(f"number {seed}", lora(pipe, seed, text=False)) for seed in (1, 2)]:
        pipe.load_lora_weights(state, adapter_name=name)
    changes = [
        lambda: pipe.set_adapters("number 1"),
        lambda: pipe.set_adapters(["number 1", "number 2"], [0.7, 0.2]),
        pipe.fuse_lora,
        pipe.unfuse_lora,
        pipe.disable_lora,
        pipe.enable_lora,
        lambda: pipe.delete_adapters("number 1"),
    ]
    made, weights = [assert_same(sampler, pipe)], [sampler.backbone.fingerprint()]
    for change in changes:
        change()
        made.append(assert_same(sampler, pipe))
        weights.append(sampler.backbone.fingerprint())
    for one in (0, 1, 4, 6):  # fusing them changes rounding only
        assert differ(made[one], made[one + 1])
        assert weights[one] != weights[one + 1]  # ranks that mean different weights must notice


@pytest.mark.parametrize(("family", "scale"), [("sd", 0.3), ("sd", 0.0), ("sd", 1.0), ("sdxl", 0.3), ("sd3", 0.3)])
def test_the_scale_of_a_call_counts_and_is_forgotten(family, scale):
    pipe = FAMILIES[family]()
    pipe.load_lora_weights(lora(pipe), adapter_name="first")
    pipe.set_adapters("first", 0.7)
    sampler, name = wrap(pipe), "joint_attention_kwargs" if family == "sd3" else "cross_attention_kwargs"
    before = ours(sampler, pipe)
    made = ours(sampler, pipe, **{name: {"scale": scale}})
    assert torch.equal(ours(sampler, pipe), before)
    assert differ(made, before) == (scale != 1.0)
    assert torch.equal(made, theirs(pipe, **{name: {"scale": scale}}))
    if scale == 0:
        assert torch.equal(made, theirs(plain(family)))


# ---------------------------------------------------------------- textual inversion


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("family", UNETS)
def test_a_learnt_word_counts(family, vectors):
    pipe = FAMILIES[family]()
    sampler = wrap(pipe)
    with_inversion(pipe, vectors)
    made = assert_same(sampler, pipe, prompt="a <fur> fox")
    assert differ(made, ours(sampler, pipe))
    assert content_tokens(pipe, "a <fur> fox", None) == tuple(range(1, 3 + vectors))  # "a", the word's own, "fox"


def test_the_mask_sees_all_of_a_learnt_word():
    pipe = FAMILIES["sd"]()
    pipe.load_textual_inversion(inversion(pipe.text_encoder, 2), token="<fur>")
    call = CALL | {"height": 2 * SIDE, "num_inference_steps": 2}
    made = [wrap(pipe, "asg")(prompt, **call).latents for prompt in ("<fur>", "a <fur>", "")]
    assert all(latents.isfinite().all() for latents in made)
    assert differ(made[0], made[1])


# ---------------------------------------------------------------- IP-Adapter


@pytest.mark.parametrize("guidance_scale", [5.0, 1.0])
@pytest.mark.parametrize("family", UNETS)
def test_a_picture_for_an_ip_adapter_counts(family, guidance_scale):
    pipe = FAMILIES[family]()
    sampler = wrap(pipe)
    with_ip_adapter(pipe)
    call = {"guidance_scale": guidance_scale, "ip_adapter_image": picture()}
    made = assert_same(sampler, pipe, **call)
    assert differ(made, ours(sampler, pipe, **(call | {"ip_adapter_image": picture(seed=2)})))
    encoded = pipe.prepare_ip_adapter_image_embeds(picture(), None, "cpu", 1, guidance_scale > 1)
    given = {"guidance_scale": guidance_scale, "ip_adapter_image_embeds": encoded}
    assert torch.equal(assert_same(sampler, pipe, **given), made)
    pipe.set_ip_adapter_scale(0.2)
    assert differ(assert_same(sampler, pipe, **call), made)


def test_several_ip_adapters_get_a_picture_each():
    pipe, _ = build("sd", "ip-adapter")
    states = [ip_adapter(pipe.unet, seed) for seed in (1, 2)]
    pipe.unload_ip_adapter()
    pipe.register_modules(image_encoder=build("sd", "ip-adapter")[0].image_encoder)
    pipe.load_ip_adapter(states, subfolder=["", ""], weight_name=["", ""])
    sampler, pictures = wrap(pipe), [picture(seed=1), picture(seed=2)]
    made = assert_same(sampler, pipe, ip_adapter_image=pictures)
    assert differ(made, ours(sampler, pipe, ip_adapter_image=pictures[::-1]))
    with pytest.raises(ConfigError, match="has 2 IP-Adapters; give ip_adapter_image as a list of as many, got 1"):
        ours(sampler, pipe, ip_adapter_image=picture())


def test_pictures_that_do_not_fit_an_ip_adapter_are_refused():
    pipe, _ = build("sd", "ip-adapter")
    sampler, single = wrap(pipe), pipe.prepare_ip_adapter_image_embeds(picture(), None, "cpu", 1, False)
    wrong = [
        ({}, "it needs ip_adapter_image or ip_adapter_image_embeds"),
        ({"ip_adapter_image_embeds": single}, "must be of no picture and the picture"),
        ({"ip_adapter_image_embeds": single, "ip_adapter_image": picture()}, "say the same thing"),
        ({"ip_adapter_image_embeds": single * 2}, "give ip_adapter_image_embeds as a list of as many tensors"),
    ]
    for call, told in wrong:
        with pytest.raises(ConfigError) as caught:
            ours(sampler, pipe, **call)
        assert told in str(caught.value)
    pipe.register_modules(image_encoder=None)
    with pytest.raises(ConfigError, match="has no image encoder, so give ip_adapter_image_embeds"):
        ours(sampler, pipe, ip_adapter_image=picture())


# ---------------------------------------------------------------- pictures, whatever they are brought as


def brought_as(values):
    """One picture of eight bits as callers have it, Float32["1 3 h w"] in; no two of one class, type and shape."""
    levels = (255 * values[0]).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(levels)
    return [picture, levels, torch.from_numpy(levels), [picture], levels[None], levels.astype("uint16") * 257]


@pytest.mark.parametrize("family", TEXTS)
def test_a_picture_to_start_from_is_the_same_whatever_it_is_brought_as(family):
    pipe, call = plain(family), CALL | {"strength": 0.5}
    made = [wrap(pipe)("a fox", image=given, **call).latents for given in brought_as(hint(2 * SIDE, SIDE))]
    assert all(torch.equal(one, made[0]) for one in made)


def test_a_hint_and_the_picture_of_an_ip_adapter_are_the_same_whatever_they_are_brought_as():
    pipe, _ = build("sd", "controlnet", "ip-adapter")
    given = zip(brought_as(hint(SIDE, SIDE)), brought_as(hint(24, 24)), strict=True)
    made = [ours(wrap(pipe), pipe, control_image=a, ip_adapter_image=[b]) for a, b in given]
    assert all(torch.equal(one, made[0]) for one in made)


@pytest.mark.parametrize("name", ["image", "control_image", "ip_adapter_image"])
def test_what_is_no_picture_is_refused_by_its_name_before_the_first_step(name):
    pipe, more = build("sd", "controlnet", "ip-adapter")
    call = CALL | more | {name: 255 * hint(SIDE, SIDE).numpy()}
    with pytest.raises(ConfigError, match=rf"^{name}: floats must be in \[0, 1\].*divide 8 bits by 255"):
        wrap(pipe)("a fox", callback_on_step_end=lambda *step: pytest.fail("a step was done"), **call)


def test_floats_for_an_ip_adapter_are_what_its_processor_gives():
    pipe, more = build("sd", "ip-adapter")
    values = pipe.feature_extractor(more["ip_adapter_image"], return_tensors="pt").pixel_values
    made = assert_same(wrap(pipe), pipe, ip_adapter_image=values)
    assert torch.equal(made, ours(wrap(pipe), pipe, **more))
    with pytest.raises(ConfigError, match="as floats is what the feature_extractor gives"):
        ours(wrap(pipe), pipe, ip_adapter_image=values[..., :16])
