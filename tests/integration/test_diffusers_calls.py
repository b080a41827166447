"""A sampler's call beside the same call of the plain pipeline: what comes back has the same form, order and values."""

import numpy as np
import pytest
import torch
from PIL import Image

from parity import CALL, SIDE, TEXTS, noise, plain, wrap
from vitrail.comm import InProcess
from vitrail.errors import CommAborted, ConfigError, ProtocolError
from vitrail.sampling.sampler import Sampler, Spread

pytestmark = pytest.mark.usefixtures("one_thread_per_operator")  # as Vitrail computes small networks

ONE = CALL | {"num_inference_steps": 1}


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def form(images):
    """Type of the pictures, and shapes and types within."""
    if isinstance(images, list):
        return list, [(type(image), image.size, image.mode) for image in images]
    return type(images), tuple(images.shape), images.dtype


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("family", TEXTS)
def test_a_picture_comes_back_as_from_the_plain_pipeline(family, output_type):
    pipe, call = plain(family), ONE | {"output_type": output_type}
    ours = wrap(pipe)("a fox", latents=noise(pipe), **call)
    theirs = pipe("a fox", latents=noise(pipe), **call)
    assert form(ours.images) == form(theirs.images)
    assert np.array_equal(np.asarray(ours.images[0]), np.asarray(theirs.images[0]))
    assert form(ours[0]) == form(theirs[0]) and ours[0] is ours["images"] is ours.images
    assert form(ours.to_tuple()[0]) == form(theirs.to_tuple()[0])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_prompts_come_back_in_the_order_of_the_plain_pipeline(output_type):
    pipe, call = plain("sd"), ONE | {"output_type": output_type, "num_images_per_prompt": 2}
    texts = {"prompt": ["a fox", "a box"], "negative_prompt": ["fog", "ox"]}
    ours, theirs = (each(**texts, generator=generator(), **call) for each in (wrap(pipe), pipe))
    assert form(ours.images) == form(theirs.images) and len(ours.images) == 4
    assert [recipe.run["prompt"] for recipe in ours.recipes] == ["a fox", "a fox", "a box", "a box"]
    assert [recipe.run["negative_prompt"] for recipe in ours.recipes] == ["fog", "fog", "ox", "ox"]


def test_without_return_dict_it_is_a_tuple():
    pipe, call = plain("sdxl"), ONE | {"return_dict": False, "output_type": "pil"}
    ours, theirs = (each("a fox", **call) for each in (wrap(pipe), pipe))
    assert isinstance(ours, tuple) and form(ours[0]) == form(theirs[0]) and len(ours) == len(theirs)
    assert isinstance(ours[0][0], Image.Image)


def test_a_result_has_the_entries_of_a_pipelines_output():
    ours, theirs = (each("a fox", **ONE) for each in (wrap(plain("sd")), plain("sd")))
    assert "images" in ours and "images" in theirs and "latents" not in ours and "latents" not in theirs
    assert len(ours) == len(ours.to_tuple()) == len(theirs.to_tuple())


def test_a_result_has_no_other_entry_than_the_images():
    result = wrap(plain("sd"))("a fox", **ONE)
    with pytest.raises(KeyError, match="a result has the key 'images', not 'latents'"):
        result["latents"]
    with pytest.raises(IndexError):
        result[1]
    with pytest.raises(TypeError):
        list(result)  # a pipeline's output gives keys, so what would be unpacked differs


# ---------------------------------------------------------------- lists


def test_a_picture_of_several_is_the_one_that_its_recipe_makes_alone():
    sampler = wrap(plain("sd"), "multidiffusion")
    many = sampler(["a fox", "a box"], negative_prompt="fog", seed=3, num_images_per_prompt=2, **ONE)
    assert [recipe.run["seed"] for recipe in many.recipes] == [3, 4, 5, 6]
    for number, recipe in enumerate(many.recipes):
        run = {name: recipe.run[name] for name in ("prompt", "negative_prompt", "seed")}
        alone = sampler(**run, **ONE)
        assert torch.equal(alone.latents[0], many.latents[number]) and alone.recipes[0] == recipe
    assert many.report.steps == 4 and len(many.images) == 4


def test_a_list_of_one_prompt_is_that_prompt():
    sampler = wrap(plain("sd"))
    plainly, listed = sampler("a fox", negative_prompt="fog", **ONE), sampler(["a fox"], negative_prompt=["fog"], **ONE)
    assert torch.equal(plainly.latents, listed.latents) and plainly.recipes == listed.recipes


def test_a_stop_among_prompts_ends_the_call():
    sampler = wrap(plain("sd"))

    def stop(run, index, timestep, tensors):
        run.interrupt()

    result = sampler(["a fox", "a box"], callback_on_step_end=stop, **CALL)
    assert result.report.interrupted and len(result.images) == len(result.recipes) == 1


def test_a_checkpoint_holds_the_prompts_of_its_run(tmp_path):
    sampler, spread = wrap(plain("sd")), Spread(checkpoint=tmp_path / "c")
    whole = sampler(["a fox", "a box"], **CALL)
    count = []

    def stop(run, index, timestep, tensors):
        count.append(index)
        if len(count) == 4:
            run.interrupt()

    sampler(["a fox", "a box"], callback_on_step_end=stop, spread=spread, **CALL)
    with pytest.raises(ConfigError, match="box"):
        sampler(["a fox", "a fox"], spread=spread, **CALL)
    assert torch.equal(sampler(["a fox", "a box"], spread=spread, **CALL).latents, whole.latents)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"prompt": []}, "an empty list asks for no picture"),
        ({"prompt": ["a fox", 5]}, r"\$.prompt: expected text"),
        ({"prompt": ["a fox", "a box"], "negative_prompt": ["fog"]}, "negative_prompt: a list of 1 for 2 prompts"),
        ({"prompt": "a fox", "num_images": 2, "num_images_per_prompt": 2}, "are the same; give one of them"),
        ({"prompt": "a fox", "num_images_per_prompt": 0}, "must be >= 1, got 0|must be >= 1: 0"),
        ({"prompt": "a fox", "num_images_per_prompt": True}, "num_images"),
        ({"prompt": "a fox", "num_images_per_prompt": torch.tensor(2.0)}, "num_images"),
        ({"prompt": "a fox", "num_images": 2, "latents": noise(plain("sd"))}, "latents are of one picture, and 2 are"),
        ({"prompt": ["a fox", "a box"], "latents": noise(plain("sd"))}, "latents are of one picture, and 2 are"),
        ({"prompt": ["a fox"] * 2, "seed": 2**63 - 1}, "the last picture's seed"),
        ({"prompt": ["a fox", "a box"], "prompt_embeds": torch.zeros(1, 16, 32)}, "prompt_embeds are of one prompt"),
        ({"prompt": "a fox", "generator": 7}, "must be a torch.Generator or a list of them, got int; for a number"),
        ({"prompt": "a fox", "generator": [generator()] * 2}, "a list of 2 for 1 picture; give one per picture"),
        ({"prompt": "a fox", "generator": generator(), "seed": 3}, "give one of them"),
    ],
)
def test_what_does_not_mean_the_same_is_refused(call, told):
    with pytest.raises(ConfigError, match=told):
        wrap(plain("sd"))(**call, **ONE)


def test_a_later_text_without_the_words_of_a_mask_is_refused_before_any_step():
    steps, masking = [], {"type": "attention", "words": ["fox"]}
    stage = {"patching": "whole", "masking": masking, "guidance": ["async"], "fusion": "average"}
    sampler = wrap(plain("sd"), {"stages": [stage]})
    with pytest.raises(ConfigError, match="'fox' is not in it"):
        sampler(["a fox", "a box"], callback_on_step_end=lambda *step: steps.append(step) or {}, **ONE)
    assert steps == []
    assert len(sampler(["a fox", "fox box"], **ONE).images) == 2


# ---------------------------------------------------------------- generators: laws of both


def both():
    pipe = plain("sd")
    return [wrap(pipe), pipe]


def made(caller, given, **call):
    return caller("a fox", generator=given, **(ONE | call)).images


@pytest.mark.parametrize("caller", both(), ids=["ours", "theirs"])
def test_the_state_of_a_generator_decides_and_a_call_moves_it_on(caller):
    used = generator()
    first, second = made(caller, used), made(caller, used)
    assert torch.equal(first, made(caller, generator())) and not torch.equal(first, second)
    advanced = generator()
    made(caller, advanced)
    assert torch.equal(second, made(caller, advanced))  # one that was used before is read as it stands
    assert not torch.equal(first, made(caller, generator(8)))


@pytest.mark.parametrize("caller", both(), ids=["ours", "theirs"])
def test_of_a_list_each_picture_has_its_own(caller):
    many = made(caller, [generator(7), generator(8)], num_images_per_prompt=2)
    assert torch.equal(many[:1], made(caller, generator(7))) and torch.equal(many[1:], made(caller, generator(8)))
    one = generator()
    twice = made(caller, [one, one], num_images_per_prompt=2)
    assert not torch.equal(twice[0], twice[1])


def test_the_recipe_has_the_seed_that_was_drawn():
    sampler = wrap(plain("sd"))
    drawn = sampler("a fox", generator=generator(), num_images_per_prompt=2, **ONE)
    first, second = (recipe.run["seed"] for recipe in drawn.recipes)
    assert second == first + 1
    assert torch.equal(drawn.latents, sampler("a fox", seed=first, num_images=2, **ONE).latents)


def test_a_call_that_fails_leaves_the_generator():
    kept = generator()
    with pytest.raises(ConfigError, match="latents must be"):
        wrap(plain("sd"))("a fox", generator=kept, latents=torch.zeros(1, 4, 3, 3), **ONE)
    assert torch.equal(kept.get_state(), generator().get_state())


# ---------------------------------------------------------------- ranks


def on_ranks(call_of):
    backbone, composition = wrap(plain("sd")).backbone, wrap(plain("sd"), "multidiffusion").composition

    def program(communicator):
        sampler, spread = Sampler(backbone, composition, model="pipeline"), Spread(communicator=communicator)
        return sampler(spread=spread, **call_of(communicator.rank), **(ONE | {"height": 2 * SIDE})).latents

    with torch.inference_mode():
        return InProcess(timeout=600).run(2, program)


def test_two_ranks_sample_the_prompts_of_one():
    call = {"prompt": ["a fox", "a box"]}
    alone = wrap(plain("sd"), "multidiffusion")(**call, generator=generator(), **(ONE | {"height": 2 * SIDE})).latents
    assert all(torch.equal(each, alone) for each in on_ranks(lambda rank: call | {"generator": generator()}))


@pytest.mark.parametrize(
    "call_of",
    [
        lambda rank: {"prompt": ["a fox", "a box" if rank else "fog"]},
        lambda rank: {"prompt": "a fox", "generator": [generator(), generator(rank)], "num_images": 2},
    ],
)
def test_ranks_that_are_asked_for_others_end_the_run(call_of):
    with pytest.raises((CommAborted, ProtocolError), match="prompts and seeds"):
        on_ranks(call_of)
