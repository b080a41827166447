"""Files that strategies read: missing ones are told at once, and a changed one is another picture everywhere."""

import functools
import json

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
model = "m"
prompts = ["a fox"]
sizes = ["64"]
methods = ["method.toml", "direct"]
run = { num_inference_steps = 1 }
"""
WORDS = ["a fox", "--size", "64", "--steps", "2", "-m", "method.toml", "--model", "m"]


def draw(path, level):
    Image.new("L", (8, 8), level).save(path)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = installed()
    monkeypatch.setattr(names, "_entries", dict(names._entries))
    names.add("masking", "file-mask", FileMask)
    names.add("guidance", "shift", Shift)
    draw("mask.png", 255)
    (tmp_path / "method.toml").write_text(METHOD)
    (tmp_path / "e.toml").write_text(EXPERIMENT)
    tiny_sd().save_pretrained(tmp_path / "m")
    return functools.partial(vitrail, monkeypatch, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ["check", "method.toml"],
        ["check", "e.toml"],
        ["sample", *WORDS],
        ["run", "e.toml"],
        ["heatmap", "a fox", "--masking", "file-mask", "--set", "stages.0.masking.path=mask.png", "--model", "m"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_missing_file_is_told_before_anything_is_loaded(run, tmp_path, words):
    (tmp_path / "mask.png").unlink()
    answer = run(*words)
    assert answer.code == 2 and "stages.0.masking: path: 'mask.png' is not there" in answer.err
    assert "loading" not in answer.out


def test_what_is_there_is_sound(run):
    assert run("check", "method.toml").code == 0
    assert run("check", "e.toml").code == 0


def test_a_changed_file_makes_the_cells_that_read_it_anew_and_no_others(run):
    assert "0 of 2 cells are done" in run("run", "e.toml", "-o", "out").out
    assert "2 of 2 cells are done" in run("run", "e.toml", "-o", "out").out
    draw("mask.png", 0)
    assert "1 of 2 cells are done" in run("run", "e.toml", "-o", "out").out
    draw("mask.png", 255)
    assert "2 of 2 cells are done" in run("run", "e.toml", "-o", "out").out


def test_a_picture_is_made_again_with_the_file_it_was_made_with_or_with_another_on_purpose(run, tmp_path):
    made = run("sample", *WORDS, "-o", "a.png")
    assert made.code == 0, made
    files = json.loads(Image.open("a.png").text["vitrail.run"])["files"]
    assert list(files) == ["stages.0.masking"]
    replay = ["replay", "a.png", "--model", "m"]
    assert run(*replay, "-o", "b.png").code == 0
    assert Image.open("a.png").tobytes() == Image.open("b.png").tobytes()
    draw("mask.png", 0)
    changed = run(*replay, "-o", "c.png")
    assert changed.code == 2
    assert "stages.0.masking: FileMask reads a file that has changed since the picture was made" in changed.err
    draw("other.png", 255)
    other = run(*replay, "--set", "stages.0.masking.path=other.png", "-o", "d.png")
    assert other.code == 0, other
    assert Image.open("a.png").tobytes() == Image.open("d.png").tobytes()
    (tmp_path / "mask.png").unlink()
    gone = run(*replay, "-o", "e.png")
    assert gone.code == 2 and "path: 'mask.png' is not there" in gone.err


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
