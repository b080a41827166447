"""A relative path in a file is meant from that file's folder, one of the command line from the working folder."""

from pathlib import Path

import pytest
from PIL import Image

from vitrail.cli.arguments import prepare
from vitrail.cli.run import check
from vitrail.core.config.paths import expanded
from vitrail.errors import ConfigError
from vitrail.experiments.spec.experiment_file import load_experiment
from vitrail.sampling import relative_paths

METHOD = '[[stages]]\npatching = "whole"\nfusion = "average"\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a method and a picture, which is neither the working one nor the home."""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    place = tmp_path / "files"
    place.mkdir()
    (place / "mine.toml").write_text(METHOD)
    Image.new("RGB", (8, 8)).save(place / "draft.png")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return place


def test_what_a_run_names_lies_beside_its_file(folder):
    file = folder / "run.toml"
    file.write_text('prompt = "a fox"\nmethod = "mine.toml"\nimage = "draft.png"\nsize = 64\n')
    run, _ = prepare({}, file=file)
    assert (run.method, run.image) == (str(folder / "mine.toml"), str(folder / "draft.png"))
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read"):  # of the command line
        prepare({"method": "mine.toml"}, file=file)
    with pytest.raises(ConfigError, match=r"draft\.png': no such file"):
        prepare({"image": "draft.png"}, file=file)


def test_what_an_experiment_names_lies_beside_its_file(folder):
    (folder / "prompts.txt").write_text("a fox\n")
    (folder / "e.toml").write_text(
        'prompts_file = "prompts.txt"\nsizes = [64]\n'
        'methods = ["mine.toml", { method = "direct", label = "d", run = { image = "draft.png" } }]\n'
        'metrics = [{ type = "clip-score", folder = "clip" }]\nreference = { type = "folder", path = "true" }\n'
        '[run]\nimage = "draft.png"\n'
        '[[axes]]\nname = "of"\noption = "image"\nvalues = ["draft.png"]\nmethods = ["mine"]\n'
    )
    experiment, _ = load_experiment(folder / "e.toml")
    picture = str(folder / "draft.png")
    assert experiment.methods[0].method == str(folder / "mine.toml")
    assert [experiment.run["image"], experiment.methods[1].run["image"], *experiment.axes[0].values] == [picture] * 3
    assert (experiment.metrics[0].folder, experiment.reference.path) == (str(folder / "clip"), str(folder / "true"))
    check(experiment, folder)


def test_the_home_folder_is_expanded_everywhere(folder, tmp_path):
    home = tmp_path / "home"
    (home / "mine.toml").write_text(METHOD)
    (home / "run.toml").write_text('prompt = "a fox"\nmethod = "mine.toml"\nsize = 64\n')
    run, _ = prepare({}, file=Path("~/run.toml"))
    assert run.method == str(home / "mine.toml")
    assert relative_paths.of_run({"image": "~/draft.png"}, folder)["image"] == str(home / "draft.png")
    assert expanded("~/x") == home / "x"


@pytest.mark.parametrize(
    ("model", "is_path"),
    [("demo", False), ("org/name", False), ("mine", True), ("./org/name", True), ("x.safetensors", True)],
)
def test_a_model_is_a_path_if_it_looks_like_one_or_is_there(folder, model, is_path):
    for name in ("demo", "mine"):
        (folder / name).mkdir()
    found = relative_paths.of_run({"model": model}, folder)["model"]
    assert found == (str(folder / model) if is_path else model)


@pytest.mark.parametrize(
    ("path", "told"),
    [("a\0b", "no NUL"), ("x" * 256, "255 bytes"), ("d/" * 2100, "4095"), ("~nobody-here/x", "no such user")],
)
def test_a_path_that_no_file_can_have_is_refused(path, told):
    with pytest.raises(ConfigError, match=told):
        expanded(path)
