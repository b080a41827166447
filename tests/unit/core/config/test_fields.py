"""Fields that came later: where they are not used, recipes and digests are those of before."""

import json

import pytest
from attrs import evolve

from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.sampling.discovery import registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.recipe import Recipe

BEFORE = {"accdiffusion": "9fbd73348bb2", "asg-cascade": "c3acdd274aaa", "multidiffusion": "f4f29c6a49b9"}
FORMER = {"accdiffusion": ("cascade.rounding=views", "stages.1.patching.tail=spread")}  # what a method said then
USED = {
    "stages.0.guidance_interval=[0.3,5]": "guidance_interval",
    "stages.0.patching.grid='moving'": "grid",
}


def digest(method, *changes):
    return Recipe.of(RunConfig(prompt="a fox", method=method, seed=3), load_method(method, changes)).digest


@pytest.mark.parametrize("method", BEFORE)
def test_digests_of_before_stay(method):
    assert digest(method, *FORMER.get(method, ())) == BEFORE[method]


@pytest.mark.parametrize("change", USED)
def test_a_later_field_is_written_where_it_is_used_and_read_again(change):
    changed = load_method("multidiffusion", [change])
    written = Loader(registry()).unstructure(changed)
    stage = written["stages"][0]
    assert USED[change] in stage or USED[change] in stage["patching"]
    assert load_method("multidiffusion") != changed == Loader(registry()).structure(written, type(changed), "test")
    assert digest("multidiffusion", change) != BEFORE["multidiffusion"]


def test_a_whole_number_in_a_field_of_floats_is_the_same_picture():
    """Files are read so; Python keeps what it is given."""
    asg = load_method("asg")
    guided = [evolve(stage, guidance=tuple(evolve(g, scale=2) for g in stage.guidance)) for stage in asg.stages]
    whole = evolve(asg, stages=tuple(evolve(stage, guidance_interval=(0, 5)) for stage in guided))
    text = json.dumps(Loader(registry()).unstructure(whole))
    assert '"scale": 2.0' in text and '"guidance_interval": [0.0, 5.0]' in text
    assert Loader(registry()).structure(json.loads(text), type(whole), "test") == whole
    whole_scale, scale = (RunConfig(prompt="a fox", guidance_scale=number, seed=3) for number in (7, 7.0))
    assert Recipe.of(whole_scale, whole).digest == Recipe.of(scale, whole).digest
    assert '"seed": 3,' in json.dumps(whole_scale.as_table())
