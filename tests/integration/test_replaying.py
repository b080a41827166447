"""A picture is made again from where its model and its start lie now, or it is said what is missing."""

import functools
import shlex
from pathlib import Path

import pytest
import torch
from attrs import evolve
from PIL import Image

from command_line import vitrail
from original_format import save_single_file
from tiny_families import tiny_sd
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError
from vitrail.sampling.input_digests import content_digest
from vitrail.sampling.kept_latents import save_latents
from vitrail.sampling.methods import load_method
from vitrail.sampling.recipe import Recipe, save_picture
from vitrail.sampling.sampler import Sampler, Spread

WORDS = ["a fox", "--size", "96", "--steps", "2", "-m", "multidiffusion"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return functools.partial(vitrail, monkeypatch, capsys)


def again(answer):
    """The command that the program named."""
    line = next(line for line in answer.out.splitlines() if line.startswith("again: "))
    return shlex.split(line.removeprefix("again: vitrail "))


@pytest.mark.parametrize("kind", ["variant", "file"])
def test_the_command_that_is_named_makes_the_picture_again(run, tmp_path, kind):
    pipe = tiny_sd()
    pipe.save_pretrained(tmp_path / "m", variant="fp16")
    save_single_file(pipe, tmp_path / "m.safetensors")
    Image.new("RGB", (30, 40), (9, 80, 200)).save(tmp_path / "start.png")
    model = ["--model", "m", "--variant", "fp16"] if kind == "variant" else ["--model", "m.safetensors"]
    config = [] if kind == "variant" else ["--model-config", "m"]
    made = run("sample", *WORDS, *model, *config, "--image", "start.png", "-o", "a.png")
    assert made.code == 0, made
    repeated = run(*again(made), "-o", "b.png")
    assert repeated.code == 0, repeated
    assert Image.open(tmp_path / "a.png").tobytes() == Image.open(tmp_path / "b.png").tobytes()
    Image.new("RGB", (30, 40), (200, 80, 9)).save(tmp_path / "start.png")
    other = run(*again(made), "-o", "c.png")
    assert other.code == 2 and "'start.png' is not the picture it started from" in other.err


def test_a_checkpoint_of_a_run_from_another_picture_is_refused(pipe, tmp_path):
    sampler, file = Sampler.from_pipeline(pipe, "direct"), tmp_path / "run.ckpt"
    call = {"height": 64, "width": 64, "num_inference_steps": 4, "spread": Spread(checkpoint=file, checkpoint_every=1)}
    first, second = (Image.new("RGB", (8, 8), (level, 80, 9)) for level in (10, 200))
    stopped = sampler(
        "a", image=first, callback_on_step_end=lambda sampler, index, *_: sampler.interrupt() or {}, **call
    )
    assert stopped.report.interrupted and file.exists()
    with pytest.raises(ConfigError, match=r"belongs to another run \(given.image"):
        sampler("a", image=second, **call)
    whole = sampler("a", image=first, height=64, width=64, num_inference_steps=4)
    assert torch.equal(sampler("a", image=first, **call).latents, whole.latents)


def test_digests_tell_contents_apart_and_nothing_else():
    picture = Image.new("RGB", (4, 4), (1, 2, 3))
    tensor = torch.arange(6.0).view(2, 3)
    values = [picture, tensor, tensor.half(), tensor.view(3, 2), [tensor], [tensor, tensor], {"scale": 0.5}, 0.5, "a"]
    digests = [content_digest(value) for value in values]
    assert len(set(digests)) == len(digests)
    assert content_digest(picture.copy()) == digests[0] and content_digest(tensor.clone()) == digests[1]


@pytest.mark.parametrize("name", ["dtype", "variant", "revision", "model_config", "model", "method"])
def test_what_was_said_when_loading_is_refused_in_a_call(pipe, name):
    with pytest.raises(ConfigError, match=f"{name} belong"):
        Sampler.from_pipeline(pipe, "direct")("a fox", **{name: "x"})


def test_the_recipe_has_the_type_of_the_pipeline():
    sampler = Sampler.from_pipeline(tiny_sd().to(torch.bfloat16), "direct")
    result = sampler("a fox", height=64, width=64, num_inference_steps=1, output_type="latent")
    assert result.recipes[0].run["dtype"] == "bfloat16"


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_a_picture_of_any_kind_is_read_in_colours(pipe, mode):
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    picture = Image.new("RGB", (20, 30), (102, 102, 102))  # of every palette
    sampler = Sampler.from_pipeline(pipe, "direct")
    expected = sampler("a fox", image=picture, **call).latents
    assert torch.equal(sampler("a fox", image=picture.convert(mode), **call).latents, expected)


@pytest.mark.parametrize("shape", [(1, 4, 7, 7), (5, 5, 5), (2, 3, 64, 64), (1, 0, 64, 64)])
def test_a_tensor_that_is_neither_picture_nor_latents_is_refused(pipe, shape):
    with pytest.raises(ConfigError, match=r"or latents (of \(1, 4, 8, 8\)|with 4 channels; got)|got 2 in one array"):
        Sampler.from_pipeline(pipe, "direct")("a", image=torch.zeros(shape), height=64, width=64, num_inference_steps=2)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"model": "someone/model"}, "--model"),
        ({"model": "/etc/model"}, "--model"),
        ({"model": "../model"}, "--model"),
        ({"model_config": "/etc/configs"}, "--model-config"),
        ({"model_config": "someone/model"}, "--model-config"),
        ({"image": "/etc/passwd"}, "--image"),
        ({"image": "~/secret.png"}, "--image"),
    ],
)
def test_a_picture_does_not_choose_what_is_read_or_fetched(tmp_path, monkeypatch, capsys, changes, option):
    monkeypatch.chdir(tmp_path)
    run = RunConfig(prompt="a fox", method="direct", width=64, height=64)
    recipe = Recipe.of(run, load_method("direct"))
    save_picture(Image.new("RGB", (64, 64)), evolve(recipe, run=recipe.run | changes), Path("theirs.png"))
    told = vitrail(monkeypatch, capsys, "replay", "theirs.png")
    assert told.code == 2 and "a picture does not choose what is read or fetched" in told.err
    assert option in told.err


@pytest.mark.parametrize("changes", [{"model": "someone/model"}, {"model": "/etc"}, {"model_config": "someone/model"}])
def test_nor_do_latents_of_somebody_else(tmp_path, monkeypatch, capsys, changes):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.of(RunConfig(prompt="a fox", method="direct", width=64, height=64), load_method("direct"))
    theirs = evolve(recipe, run=recipe.run | changes)
    save_latents(torch.zeros(1, 4, 8, 8), theirs, Path("theirs.latents.safetensors"))
    told = vitrail(monkeypatch, capsys, "decode", "theirs.latents.safetensors")
    assert told.code == 2 and "a picture does not choose what is read or fetched" in told.err


def test_escapes_in_a_recipe_reach_no_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.of(RunConfig(prompt="a fox", method="direct", width=64, height=64), load_method("direct"))
    hostile = evolve(recipe, run=recipe.run | {"method": "\x1b[2J\x1b]0;owned\x07", "model": "demo\x1b[31m"})
    save_picture(Image.new("RGB", (64, 64)), hostile, Path("theirs.png"))
    told = vitrail(monkeypatch, capsys, "replay", "theirs.png")
    assert told.code == 2 and "\x1b" not in told.out + told.err
