"""Keys of the version before: a method with them is the same method, said once; pictures and cells of before stay."""

import copy
import json
from pathlib import Path

import pytest
from attrs import evolve
from PIL import Image
from structlog.testing import capture_logs

from vitrail.cli.replay import replayed
from vitrail.core.config import renamed_keys
from vitrail.core.config.files import read_file
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError
from vitrail.experiments.spec.cells import Model, cells_of
from vitrail.experiments.spec.experiment_file import structure
from vitrail.sampling.discovery import registry
from vitrail.sampling.methods import composition_of, load_method
from vitrail.sampling.recipe import Recipe, recipe_of, save_picture, sealed_text

METHOD = "demofusion"
TABLES = read_file(registry().path("methods", METHOD))
RUN = RunConfig(prompt="a fox", method=METHOD, seed=7)


@pytest.fixture
def said(monkeypatch):
    """What is logged, as in a new process."""
    renamed_keys._warn.cache_clear()
    with capture_logs() as events:
        yield lambda: [event for event in events if event["event"] == "method.key_renamed"]


def former(tables):
    """A method as the version before wrote it."""
    tables = copy.deepcopy(tables)
    for stage in tables["stages"]:
        if "extra_views" in stage:
            stage["also"] = stage.pop("extra_views")
    return tables


def toml_file(path):
    """The method's file with its former key."""
    text = registry().path("methods", METHOD).read_text().replace("extra_views =", "also =")
    path.write_text(text)
    return path


def test_a_method_with_the_former_key_is_the_same_and_is_told_once(tmp_path, said):
    path = toml_file(tmp_path / "mine.toml")
    assert load_method(path) == composition_of(former(TABLES)) == load_method(METHOD)
    assert said() == [{"event": "method.key_renamed", "key": "also", "now": "extra_views", "log_level": "warning"}]


@pytest.mark.parametrize("key", ["also", "extra_views"])
def test_assignments_reach_the_key_under_either_name(tmp_path, said, key):
    for method in (METHOD, toml_file(tmp_path / "mine.toml")):
        assert load_method(method, [f"stages.1.{key}.0.weight=0.25"]).stages[1].extra_views[0].weight == 0.25
        assert load_method(method, [f"stages.1.{key}=[]"]).stages[1].extra_views == ()


def test_todays_key_alone_is_not_told(said):
    load_method(METHOD, ["stages.1.extra_views=[]"])
    assert said() == []


def test_both_keys_together_are_refused_with_all_other_problems(said):
    tables = copy.deepcopy(TABLES)
    tables["stages"][1]["also"] = []
    tables["stages"][0]["until"] = 2.0
    with pytest.raises(ConfigError) as caught:
        composition_of(tables)
    told = str(caught.value)
    assert "$.stages[1]: a stage has no key 'also': it is 'extra_views' now, which is given as well; keep that" in told
    assert "$.stages[0].until: must be <= 1" in told
    assert said() == []


def test_a_picture_of_before_is_replayed_without_a_word(tmp_path, said):
    recipe = Recipe.of(RUN, load_method(METHOD))
    before = evolve(recipe, method=former(recipe.method), files={"stages.1.also.0.patching": "d"})
    assert all("also" in stage for stage in before.method["stages"])
    again = recipe_of(sealed_text(before), "a.png")
    assert again == evolve(recipe, files={"stages.1.extra_views.0.patching": "d"})
    save_picture(Image.new("RGB", (512, 512)), evolve(before, files={}), tmp_path / "a.png")
    run, composition, read = replayed(tmp_path / "a.png", (), {})
    assert (run, composition, read) == (RUN, load_method(METHOD), recipe)
    assert said() == []


def test_digests_and_addresses_of_before_stay():
    former = ("cascade.rounding=views", "stages.1.patching.tail=spread")  # what the method said then
    assert Recipe.of(RUN, load_method(METHOD, former)).digest == "eab1c3a44deb"
    assert Recipe.of(evolve(RUN, eta=0.5), load_method(METHOD, former)).digest != "eab1c3a44deb"
    model = Model(native_size=64, defaults={}, fingerprint="f")
    for key in ("also", "extra_views"):
        bare = {"method": METHOD, "label": "bare", "set": [f"stages.1.{key}=[]", *former]}
        experiment = structure({"methods": ["multidiffusion", bare], "prompts": ["a fox"], "sizes": ["64"]}, "test")
        assert [cell.address for cell in cells_of(experiment, model, Path())] == ["8632fd9b4c41", "1a7969824310"]


@pytest.mark.parametrize("data", [None, 3, [], {"stages": 3}, {"stages": [3]}, {"stage": [{"also": []}]}])
def test_what_is_no_method_stays_as_it_is(data, said):
    assert json.dumps(renamed_keys.current_keys(data)) == json.dumps(renamed_keys.former_keys(data)) == json.dumps(data)
    assert said() == []
