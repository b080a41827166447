"""The experiments that ship are sound, and change their model by one line."""

from pathlib import Path

import pytest

from vitrail.cli.run import check
from vitrail.experiments.spec.cells import pairs_of
from vitrail.experiments.spec.experiment_file import load_experiment

ROOT = Path(__file__).parents[4]
FILES = sorted((ROOT / "experiments").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_is_sound_and_told_of(path):
    experiment, _ = load_experiment(path)
    check(experiment, path.parent)
    assert experiment.title
    assert path.read_text().startswith("# ")
    assert f"`{path.name}`" in (ROOT / "experiments/README.md").read_text()


OF_THE_DEMO_MODEL = ("gallery", "asg-tuning")
BASED = [path for path in FILES if path.stem not in OF_THE_DEMO_MODEL]


@pytest.mark.parametrize("path", BASED, ids=lambda path: path.stem)
def test_one_line_makes_it_an_experiment_on_another_model(path, tmp_path):
    for folder in ("bases", "methods"):
        (tmp_path / folder).symlink_to(ROOT / "experiments" / folder)
    text = path.read_text()
    assert text.count('extends = "bases/demo') == 1
    other = tmp_path / path.name
    other.write_text(text.replace("bases/demo", "bases/sdxl"))
    mine, theirs = load_experiment(path)[0], load_experiment(other)[0]
    assert theirs.model.startswith("stabilityai/")
    assert theirs.prompts_file == "bases/prompts.txt"
    assert theirs.run["num_inference_steps"] == 50
    assert "judge" not in repr(theirs.metrics).lower()  # it knows the demo model's objects alone
    assert bool(theirs.metrics) == bool(mine.metrics)
    count = len(pairs_of(theirs, tmp_path))
    assert all((entry.pictures or count) <= count for entry in theirs.sizes)
    assert theirs.labels() == mine.labels()
    assert all(entry.size.endswith("x") for entry in mine.sizes)
