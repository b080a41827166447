"""Experiment files: strict as every other file, one on top of another, and every problem told at once."""

import pytest

from vitrail.errors import ConfigError
from vitrail.experiments.spec.experiment_file import load_experiment, merged, read_with_bases

SOUND = """
scenes = 2
sizes = [128, "192x128", { size = "2x", pictures = 1 }]
methods = ["direct", { method = "asg", label = "no mask", set = ["stages.0.masking=none"] }]
[run]
num_inference_steps = 3
"""
AXIS = '[[axes]]\nname = "scale"\nvalues = [1, 2]\nset = ["stages.0.guidance.0.scale={value}"]\n'


def write(folder, text, name="e.toml"):
    path = folder / name
    path.write_text(text)
    return path


def test_short_forms_are_spelt_out(tmp_path):
    experiment, _ = load_experiment(write(tmp_path, SOUND))
    assert [entry.size for entry in experiment.sizes] == ["128", "192x128", "2x"]
    assert experiment.labels() == ["direct", "no mask"]


def test_overrides_reach_every_place(tmp_path):
    sets = ["sizes.2.pictures=7", "run.num_inference_steps=9", "methods.1.label=other"]
    experiment, table = load_experiment(write(tmp_path, SOUND), sets)
    assert experiment.sizes[2].pictures == 7
    assert experiment.run == {"num_inference_steps": 9}
    assert experiment.labels() == ["direct", "other"]
    assert table["run"] == {"num_inference_steps": 9}


def test_a_file_on_top_of_another(tmp_path):
    base = tmp_path / "bases"
    base.mkdir()
    write(base, SOUND, "base.toml")
    write(tmp_path, 'extends = "bases/base.toml"\nsizes = [64]\n', "middle.toml")
    top = write(tmp_path, 'extends = "middle.toml"\nprompts = ["a fox"]\n[run]\nguidance_scale = 2.0\n')
    experiment, _ = load_experiment(top)
    assert experiment.prompts == ("a fox",)
    assert experiment.scenes == 0  # another source of prompts takes its place
    assert [entry.size for entry in experiment.sizes] == ["64"]
    assert experiment.run == {"num_inference_steps": 3, "guidance_scale": 2.0}


def test_prompts_of_a_base_are_found_from_the_file_on_top(tmp_path):
    (tmp_path / "bases").mkdir()
    write(tmp_path / "bases", 'prompts_file = "p.txt"\nsizes = [64]\nmethods = ["direct"]\n', "base.toml")
    experiment, _ = load_experiment(write(tmp_path, 'extends = "bases/base.toml"\n'))
    assert experiment.prompts_file == "bases/p.txt"


def test_a_method_of_a_base_lies_beside_the_base(tmp_path):
    (tmp_path / "bases").mkdir()
    for folder in (tmp_path, tmp_path / "bases"):
        write(folder, 'title = "its own"\n', "mine.toml")
    write(tmp_path / "bases", 'scenes = 1\nsizes = [64]\nmethods = ["mine.toml"]\n', "base.toml")
    below, _ = load_experiment(write(tmp_path, 'extends = "bases/base.toml"\n'))
    assert [entry.method for entry in below.methods] == [str(tmp_path / "bases/mine.toml")]
    above, _ = load_experiment(write(tmp_path, 'extends = "bases/base.toml"\nmethods = ["mine.toml"]\n'))
    assert [entry.method for entry in above.methods] == [str(tmp_path / "mine.toml")]


def test_a_circle_is_refused(tmp_path):
    write(tmp_path, 'extends = "b.toml"\n', "a.toml")
    write(tmp_path, 'extends = "a.toml"\n', "b.toml")
    with pytest.raises(ConfigError, match="extends itself"):
        read_with_bases(tmp_path / "a.toml")


def test_merging_keeps_what_is_not_named_and_replaces_strategies_whole():
    below = {"run": {"a": 1, "b": 2}, "reference": {"type": "x", "count": 3}, "list": [1, 2]}
    above = {"run": {"b": 3}, "reference": {"type": "y"}, "list": [4]}
    assert merged(below, above) == {"run": {"a": 1, "b": 3}, "reference": {"type": "y"}, "list": [4]}
    assert below["run"] == {"a": 1, "b": 2}


BROKEN = {
    "no prompts": ("sizes = [64]\nmethods = ['direct']\n", ["exactly one of 'prompts', 'prompts_file' and 'scenes'"]),
    "two sources": (SOUND.replace("scenes = 2", "scenes = 2\nprompts = ['a']"), ["exactly one of"]),
    "nothing to do": ("scenes = 1\n", ["needs 'methods' and 'sizes', or 'heatmaps'"]),
    "unknown key": (SOUND.replace("scenes", "scnes"), ["$: an experiment has no key 'scnes' (did you mean 'scenes'?)"]),
    "unknown run option": (
        SOUND.replace("num_inference_steps", "num_inference_stps"),
        ["$.run: a run has no key 'num_inference_stps' (did you mean 'num_inference_steps'?)"],
    ),
    "what cells have": (SOUND + "seed = 3\n", ["$.run: 'seed' is said elsewhere in an experiment"]),
    "no size": (SOUND.replace('"192x128"', '"large"'), ["$.sizes[1].size: 'large' is no size", "times the size"]),
    "too small": (SOUND.replace('"192x128"', '"2x2"'), ["'2x2'", "64 to 65536 pixels", "write 2x for twice"]),
    "same label": (SOUND.replace('"no mask"', '"direct"'), ["method 'direct' is there twice"]),
    "idle axis": (
        SOUND + '[[axes]]\nname = "w"\nvalues = [1]\n',
        ["$.axes[0]: axis 'w' does nothing with its values"],
    ),
    "no place for the value": (SOUND + AXIS.replace("{value}", "3"), ["must have {value} in it"]),
    "value twice": (SOUND + AXIS.replace("[1, 2]", "[1, 1]"), ["axis 'scale' has a value twice"]),
    "axis for nobody": (SOUND + AXIS + 'methods = ["asgg"]\n', ["axis 'scale' is for 'asgg', which is no method's"]),
    "seeds and repeats": ("seeds = [1]\nrepeats = 2\n" + SOUND, ["'repeats' gives seeds itself"]),
    "no ranks": ("ranks = [0]\n" + SOUND, ["'ranks' are one or more numbers of processes"]),
    "unknown metric": ("metrics = ['objcts']\n" + SOUND, ["no metric named 'objcts' (did you mean 'objects'?)"]),
    "size twice": (SOUND.replace('"192x128"', '"128"'), ["size '128' is there twice; leave one out"]),
    "ranks twice": ("ranks = [2, 2]\n" + SOUND, ["number of ranks '2' is there twice"]),
    "column twice": ("metrics = ['seams', 'seams']\n" + SOUND, ["column 'seams' is there twice"]),
    "figure twice": (SOUND + 2 * "[[heatmaps]]\nmasking = 'pfsa'\n", ["heat map 'pfsa' is there twice"]),
    "setting twice": (
        SOUND + '[[axes]]\nname = "w"\nsettings = [{ name = "a" }, { name = "a" }]\n',
        ["axis 'w' has a setting twice"],
    ),
    "another model for a method": (
        SOUND.replace("set = [", "run = { dtype = 'bfloat16' }, set = ["),
        ["$.methods[1].run: 'dtype' is of the model, which is loaded once for all rows"],
    ),
    "another model for a value": (
        SOUND + AXIS.replace("set = [", "option = 'variant'\nset = ["),
        ["'variant' is of the model, which is loaded once"],
    ),
    "no reference": ("metrics = ['fid']\n" + SOUND, ["a metric compares with true pictures; say which"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_answered_with_path_and_cure(tmp_path, name):
    text, expected = BROKEN[name]
    with pytest.raises(ConfigError) as error:
        load_experiment(write(tmp_path, text))
    for part in expected:
        assert part in str(error.value)


def test_several_problems_are_told_at_once(tmp_path):
    text = SOUND.replace("num_inference_steps", "steps").replace('"192x128"', '"large"').replace("label", "lable")
    with pytest.raises(ConfigError) as error:
        load_experiment(write(tmp_path, text))
    for part in ("$.run", "$.sizes[1].size", "$.methods[1]"):
        assert part in str(error.value)
