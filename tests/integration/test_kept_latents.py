"""A decoder that fails: what was sampled is kept, in the error and in a file, and becomes the same picture later."""

import functools
import re
from pathlib import Path

import pytest
import torch
from attrs import evolve

from command_line import vitrail
from vitrail.backbones.pipeline_backbone import PipelineBackbone
from vitrail.cli.console import console
from vitrail.cli.rescue import keep
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CommAborted, CommTimeout, ConfigError, DecodeError
from vitrail.sampling.kept_latents import latents_kept, load_latents, save_latents
from vitrail.sampling.recipe import read_recipe
from vitrail.sampling.sampler import Sampler

CALL = {"height": 128, "width": 96, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
FOX = ("sample", "a fox", "--size", "96x80", "--steps", "2", "-m", "multidiffusion")


class NoRoom:
    """Fails in the decoder, after all that is expensive."""

    def __init__(self, monkeypatch, backbone=PipelineBackbone, only=None):
        self.calls, self.only, whole = 0, only, backbone.decode

        @functools.wraps(whole)
        def decode(backbone, latents, exchange=None, *rest):
            self.calls += 1
            if only is None or (exchange is not None and exchange.rank == only):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30.00 GiB.")
            return whole(backbone, latents, exchange, *rest)

        monkeypatch.setattr(backbone, "decode", decode)


def test_the_error_of_a_failed_decode_has_the_latents_and_recipes(pipe, monkeypatch, tmp_path):
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    call = CALL | {"output_type": "pt", "num_images": 2}
    expected = sampler("a fox", **call)
    with monkeypatch.context() as patch:
        NoRoom(patch)
        with pytest.raises(DecodeError, match=r"OutOfMemoryError: CUDA out.*not lost") as caught:
            sampler("a fox", **call)
    error = caught.value
    assert torch.equal(error.latents, expected.latents)
    assert list(error.recipes) == list(expected.recipes)
    assert isinstance(error.__cause__, torch.OutOfMemoryError)
    save_latents(error.latents[1:], error.recipes[1], tmp_path / "fox.latents.safetensors")
    latents, recipe = load_latents(tmp_path / "fox.latents.safetensors")
    assert torch.equal(latents[0], expected.latents[1]) and recipe == expected.recipes[1]
    assert not sorted(tmp_path.glob("*.part"))


@pytest.mark.parametrize("ranks", [(), ("--ranks", "2", "--comm", "in-process")], ids=["alone", "two ranks"])
def test_the_command_line_keeps_latents_and_decodes_them_later(folder, tmp_path, monkeypatch, capsys, ranks):
    monkeypatch.chdir(tmp_path)
    told = vitrail(monkeypatch, capsys, *FOX, "--model", folder, "-o", "whole.png")
    assert told.code == 0, told.err
    with monkeypatch.context() as patch:
        NoRoom(patch, only=1 if ranks else None)
        told = vitrail(monkeypatch, capsys, *FOX, "--model", folder, "-o", "fox.png", *ranks)
    assert told.code == 1 and "the picture could not be decoded: " in told.err
    assert not Path("fox.png").exists()
    again = re.search(r"fox.latents.safetensors: the latents are kept; go on with `vitrail (.+)`", told.out)
    assert again, told.out
    told = vitrail(monkeypatch, capsys, *again[1].split())
    assert told.code == 0, told.err
    assert "fox.png: 96x80, seed 0" in told.out
    assert read_recipe(Path("fox.png")) == read_recipe(Path("whole.png"))
    assert pixels("fox.png") == pixels("whole.png")


def pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def test_every_picture_of_several_is_kept_under_its_name(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    NoRoom(monkeypatch)
    told = vitrail(monkeypatch, capsys, *FOX, "--model", folder, "--num-images", "2", "-o", "fox.png")
    assert told.code == 1
    names = ["fox-0.latents.safetensors", "fox-1.latents.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert [load_latents(Path(name))[1].run["seed"] for name in names] == [0, 1]


@pytest.mark.parametrize(
    "stem", ["x" * 100, "x" * 240, "ü" * 120], ids=["short enough", "too long", "too long in bytes"]
)
def test_pictures_with_long_names_are_kept_apart(pipe, tmp_path, stem):
    """Names that differ only at their ends, with and without room for what a file of latents is told by."""
    result = Sampler.from_pipeline(pipe, "multidiffusion")("a fox", num_images=2, **CALL)
    for number, (latents, recipe) in enumerate(zip(result.latents, result.recipes, strict=True)):
        keep(console(), latents, recipe, tmp_path / f"{stem}-{number}.png", RunConfig(prompt="a fox"))
    kept = {recipe.run["seed"]: latents for latents, recipe in map(load_latents, tmp_path.iterdir())}
    assert sorted(kept) == [0, 1]
    assert all(torch.equal(kept[seed][0], result.latents[seed]) for seed in kept)


@pytest.mark.parametrize(
    "error", [CommAborted(1, "a bad day"), CommTimeout("rank 1 is behind")], ids=["abort", "timeout"]
)
def test_what_ends_the_run_on_all_ranks_stays_the_error_and_carries_the_latents(error):
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(type(error)) as caught, latents_kept(latents, ["recipe"]):
        raise error
    assert caught.value is error and error.kept.latents is latents


def test_files_that_hold_no_latents_are_refused(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    Path("notes.latents.safetensors").write_text("hello")
    for name in ("notes.latents.safetensors", "missing.latents.safetensors"):
        with pytest.raises(ConfigError, match="is not latents that vitrail kept, or is damaged"):
            load_latents(Path(name))
        assert vitrail(monkeypatch, capsys, "decode", name).code == 2


def test_decode_says_if_the_model_is_not_here(pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = Sampler.from_pipeline(pipe, "multidiffusion")("a fox", **CALL)
    recipe = evolve(result.recipes[0], run=result.recipes[0].run | {"model": "away"})
    save_latents(result.latents, recipe, Path("fox.latents.safetensors"))
    told = vitrail(monkeypatch, capsys, "decode", "fox.latents.safetensors")
    assert told.code == 2 and "'away'" in told.err and "--model" in told.err
