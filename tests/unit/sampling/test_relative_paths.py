"""A relative path in a file is meant from that file's folder, one of the command line from the working folder."""

from pathlib import Path

import pytest
from attrs import frozen
from PIL import Image

from vitrail.cli.arguments import prepare
from vitrail.cli.run import check
from vitrail.core.config.paths import expanded
from vitrail.errors import ConfigError
from vitrail.experiments.spec.experiment_file import load_experiment
from vitrail.plugins.guidance.none import NoGuidance
from vitrail.sampling import relative_paths
from vitrail.sampling.discovery import installed

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


@pytest.mark.parametrize("name", ["lpips.pth", "~/lpips.pth"])
def test_a_strategy_of_any_slot_says_which_of_its_options_are_paths(folder, tmp_path, name):
    """One way for upscalers, guidance and all others, in a method's file and in overrides of an experiment's."""
    found = str(tmp_path / "home/lpips.pth" if name.startswith("~") else folder / name)
    guidance = {"type": "synchronized", "weights": name, "scale": 1.0}
    method = {"stages": [{"patching": "windows", "guidance": [guidance, "none"]}]}
    resolved = relative_paths.of_method(method, folder)["stages"][0]
    assert resolved == {"patching": "windows", "guidance": [guidance | {"weights": found}, "none"]}
    whole = f"stages.0.guidance=[{{type='synchronized', weights='{name}'}}]"
    for assignment in (f"stages.0.guidance.0.weights={name}", whole):
        assert found in overridden(assignment, folder)
    axis = {"name": "of", "set": ["stages.0.guidance.0.weights={value}"], "values": [name]}
    (entry,) = relative_paths.of_experiment({"axes": [axis]}, folder)["axes"]
    assert (entry["values"], entry["set"]) == ([found], axis["set"])
    heatmap = {"masking": "attention", "set": [f"stages.0.guidance.0.weights={name}"]}
    (entry,) = relative_paths.of_experiment({"heatmaps": [heatmap]}, folder)["heatmaps"]
    assert found in entry["set"][0]


def test_an_option_that_no_strategy_calls_a_path_stays_as_it_is(folder):
    guidance = [{"type": "nobody", "weights": "x"}, {"type": "sync", "scale": "x", "path": "y"}]
    method = {"stages": [{"guidance": guidance}]}
    assert relative_paths.of_method(method, folder) == method
    assert overridden("stages.0.guidance.0.scale=2", folder) == "stages.0.guidance.0.scale=2"


def overridden(assignment, folder):
    """An override of a method in an experiment of this folder, as it is read."""
    (entry,) = relative_paths.of_experiment({"methods": [{"method": "asg", "set": [assignment]}]}, folder)["methods"]
    (found,) = entry["set"]
    return found


def test_an_option_that_is_a_path_of_some_strategies_alone_wants_the_type(folder, monkeypatch):
    @frozen(kw_only=True)
    class Weighted(NoGuidance):
        weights: str = "1, 2"

    names = installed()
    monkeypatch.setattr(names, "_entries", dict(names._entries))
    names.add("guidance", "weighted", Weighted)
    with pytest.raises(ConfigError, match="'weights' is a path of synchronized and not of every guidance that has it"):
        overridden("stages.0.guidance.0.weights=a.pth", folder)
    assert overridden("stages.0.guidance.0.weights=3", folder) == "stages.0.guidance.0.weights=3"  # no number is a path
    numbers = {"name": "of", "set": ["stages.0.guidance.0.weights={value}"], "values": [0.5, 1.0]}
    assert relative_paths.of_experiment({"axes": [numbers]}, folder)["axes"] == [numbers]
    typed = "stages.0.guidance.0={type='weighted', weights='3'}"
    assert overridden(typed, folder) == typed


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
