"""Files that strategies read: missing ones are told at once, and a changed one is another picture everywhere."""

import functools
import json
import shutil

import pytest
from PIL import Image

from command_line import vitrail
from file_mask import FileMask, Shift
from tiny_families import tiny_sd
from vitrail import Composition, Sampler, Stage
from vitrail.errors import ConfigError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.guidance.synchronized import Synchronized
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.patching.whole import Whole
from vitrail.sampling.discovery import installed
from vitrail.sampling.sampler import Spread

METHOD = """
[[stages]]
patching = "whole"
fusion = "average"
masking = {type = "file-mask", path = "mask.png"}
guidance = ["shift"]
"""
EXPERIMENT = """
model = "../m"
prompts = ["a fox"]
sizes = ["64"]
methods = ["../methods/method.toml", "direct"]
run = { num_inference_steps = 1 }
"""
WORDS = ["a fox", "--size", "64", "--steps", "2", "-m", "methods/method.toml", "--model", "m"]


MASK = "methods/mask.png"  # beside the method, which names it "mask.png"; not in the working folder


def draw(path, level):
    Image.new("L", (8, 8), level).save(path)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = installed()
    monkeypatch.setattr(names, "_entries", dict(names._entries))
    names.add("masking", "file-mask", FileMask)
    names.add("guidance", "shift", Shift)
    for folder in ("methods", "experiments"):
        (tmp_path / folder).mkdir()
    draw(MASK, 255)
    (tmp_path / "methods/method.toml").write_text(METHOD)
    (tmp_path / "experiments/e.toml").write_text(EXPERIMENT)
    tiny_sd().save_pretrained(tmp_path / "m")
    return functools.partial(vitrail, monkeypatch, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["check", "methods/method.toml"],
        ["check", "experiments/e.toml"],
        ["sample", *WORDS],
        ["run", "experiments/e.toml"],
        ["heatmap", "a fox", "--masking", "file-mask", "--set", f"stages.0.masking.path={MASK}", "--model", "m"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_missing_file_is_told_before_anything_is_loaded(run, tmp_path, words):
    (tmp_path / MASK).unlink()
    answer = run(*words)
    assert answer.code == 2 and "mask.png' is not there" in answer.err and "stages.0.masking: path: '" in answer.err
    assert "loading" not in answer.out


def test_what_is_there_is_sound(run):
    assert run("check", "methods/method.toml").code == 0
    assert run("check", "experiments/e.toml").code == 0


def test_a_relative_path_lies_beside_the_file_that_names_it(run, tmp_path, monkeypatch):
    """Also where a file of that name is in the working folder."""
    made = run("sample", *WORDS, "-o", "a.png")
    assert made.code == 0, made
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    draw("mask.png", 0)
    words = [*WORDS[:-4], "-m", "../methods/method.toml", "--model", "../m"]
    assert run("sample", *words, "-o", "b.png").code == 0
    assert run("sample", *words, "--set", "stages.0.masking.path=mask.png", "-o", "c.png").code == 0  # of the command
    made = [Image.open(tmp_path / each).tobytes() for each in ("a.png", "elsewhere/b.png", "elsewhere/c.png")]
    assert made[0] == made[1] != made[2]


def test_the_home_folder_is_expanded_wherever_a_file_is_named(run, tmp_path, monkeypatch):
    """Of what is written, of what is gone on from, and of what a strategy reads."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copy(MASK, home / "mask.png")
    (tmp_path / "methods/method.toml").write_text(METHOD.replace("mask.png", "~/mask.png"))
    written = ["-o", "~/a.png", "--trace", "~/a.json", "--checkpoint", "~/a.ckpt", "--checkpoint-every", "1"]
    made = run("sample", *WORDS, *written)
    assert made.code == 0, made
    assert {"a.png", "a.json"} <= {path.name for path in home.iterdir()}  # the checkpoint is gone when all is done
    assert run("run", "experiments/e.toml", "--out", "~/cells").code == 0
    assert len(list((home / "cells").rglob("*.png"))) == 2
    (home / "lpips.safetensors").write_bytes(b"one")
    assert guided("~/lpips.safetensors").digests() == guided(home / "lpips.safetensors").digests() != {}
    assert not (tmp_path / "~").exists()


def test_the_folder_of_a_file_is_no_other_picture(run, tmp_path, monkeypatch):
    """Cells that are done stay so when experiment, method and mask move together."""
    assert "0 of 2 cells are done" in run("run", "experiments/e.toml", "-o", "out").out
    for folder in ("methods", "experiments", "m"):
        (tmp_path / folder).rename(tmp_path / "out" / folder)
    assert "2 of 2 cells are done" in run("run", "out/experiments/e.toml", "-o", "out").out


def test_a_changed_file_makes_the_cells_that_read_it_anew_and_no_others(run):
    assert "0 of 2 cells are done" in run("run", "experiments/e.toml", "-o", "out").out
    assert "2 of 2 cells are done" in run("run", "experiments/e.toml", "-o", "out").out
    draw(MASK, 0)
    assert "1 of 2 cells are done" in run("run", "experiments/e.toml", "-o", "out").out
    draw(MASK, 255)
    assert "2 of 2 cells are done" in run("run", "experiments/e.toml", "-o", "out").out


def test_a_picture_is_made_again_with_the_file_it_was_made_with_or_with_another_on_purpose(run, tmp_path):
    made = run("sample", *WORDS, "-o", "a.png")
    assert made.code == 0, made
    files = json.loads(Image.open("a.png").text["vitrail.run"])["files"]
    assert list(files) == ["stages.0.masking"]
    replay = ["replay", "a.png", "--model", "m"]
    assert run(*replay, "-o", "b.png").code == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    draw(MASK, 0)
    changed = run(*replay, "-o", "c.png")
    assert changed.code == 2
    assert "stages.0.masking: FileMask reads a file that has changed since the picture was made" in changed.err
    draw("other.png", 255)
    other = run(*replay, "--set", "stages.0.masking.path=other.png", "-o", "d.png")
    assert other.code == 0, other
    assert Image.open("a.png").tobytes() == Image.open("d.png").tobytes()
    (tmp_path / MASK).unlink()
    gone = run(*replay, "-o", "e.png")
    assert gone.code == 2 and f"path: '{MASK}' is not there" in gone.err


def composed(path):
    stage = Stage(patching=Whole(), fusion=Average(), masking=FileMask(path=str(path)), guidance=[Shift()])
    return Composition(stages=[stage])


def test_a_checkpoint_goes_on_with_the_same_file_alone(pipe, tmp_path):
    mask, file = tmp_path / "mask.png", tmp_path / "run.ckpt"
    draw(mask, 255)
    sampler = Sampler.from_pipeline(pipe, composed(mask))
    call = {"height": 64, "width": 64, "num_inference_steps": 4, "spread": Spread(checkpoint=file, checkpoint_every=1)}
    stopped = sampler("a", callback_on_step_end=lambda sampler, index, *_: sampler.interrupt() or {}, **call)
    assert stopped.report.interrupted
    draw(mask, 0)
    with pytest.raises(ConfigError, match=r"belongs to another run \(files.stages.0.masking"):
        sampler("a", **call)


def test_python_is_told_of_a_missing_file_before_the_first_step(pipe, tmp_path):
    with pytest.raises(ConfigError, match=r"stages\.0\.masking: path: '.*nothing\.png' is not there"):
        Sampler.from_pipeline(pipe, composed(tmp_path / "nothing.png"))


def test_weights_of_a_perceptual_distance_are_such_a_file(tmp_path):
    weights = tmp_path / "lpips.safetensors"
    with pytest.raises(ConfigError, match=r"stages\.0\.guidance\.0: weights: .*cannot be read"):
        guided(weights).check_files()
    weights.write_bytes(b"one")
    first = guided(weights).digests()
    weights.write_bytes(b"other")
    second = guided(weights).digests()
    assert list(first) == list(second) == ["stages.0.guidance.0"]
    assert first != second
    assert guided(None).digests() == {}


def guided(weights):
    guidance = Synchronized(weights=None if weights is None else str(weights))
    return Composition(stages=[Stage(patching=Whole(), fusion=Average(), masking=NoMask(), guidance=[guidance])])


def test_a_recipe_does_not_tell_whose_home_a_strategys_file_lies_in(tmp_path, monkeypatch):
    from vitrail.core.config.run_config import RunConfig
    from vitrail.sampling.methods import composition_of
    from vitrail.sampling.recipe import Recipe

    monkeypatch.setenv("HOME", str(tmp_path))
    for file, told in ((tmp_path / "net/x.pth", "~/net/x.pth"), ("/elsewhere/x.pth", "/elsewhere/x.pth")):
        guidance = {"type": "synchronized", "weights": str(file)}
        method = composition_of({"stages": [{"patching": "windows", "guidance": [guidance], "fusion": "average"}]})
        recipe = Recipe.of(RunConfig(prompt="a fox"), method)
        assert recipe.method["stages"][0]["guidance"][0]["weights"] == told
