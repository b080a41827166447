"""Regions as data: what a table may say, and what is refused with a hint."""

import json

import pytest

from vitrail.core.config.loader import Loader
from vitrail.core.config.region import Region
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry

BOX = [0.0, 0.25, 0.5, 1.0]


def run(*regions):
    return Loader(registry()).structure({"prompt": "a field", "regions": list(regions)}, RunConfig, "test")


def test_regions_survive_plain_data():
    both = run({"box": BOX, "prompt": ""}, {"mask": "m.png", "prompt": "a fox", "negative_prompt": "", "weight": 2})
    assert RunConfig(**json.loads(json.dumps(both.as_table()))) == both
    assert both.regions[0] == Region(box=BOX, prompt="") and both.regions[1].negative_prompt == ""
    assert run() == RunConfig(prompt="a field")


@pytest.mark.parametrize(
    ("region", "told"),
    [
        ({"box": BOX, "promt": "a"}, r"a region has no key 'promt' \(did you mean 'prompt'\?\)"),
        ({"box": BOX}, r"regions\[0\]\.prompt: is missing"),
        ({"prompt": "a"}, "needs either a 'box' or a 'mask'"),
        ({"prompt": "a", "box": []}, "needs either a 'box' or a 'mask'"),
        ({"prompt": "a", "box": BOX, "mask": "m.png"}, "needs either a 'box' or a 'mask'"),
        ({"prompt": "a", "mask": " "}, "must be left out or say something"),
        ({"prompt": "a", "box": [0, 0, 1]}, "must be four shares of the picture"),
        ({"prompt": "a", "box": [0.5, 0, 0.5, 1]}, "0 <= left < right <= 1"),
        ({"prompt": "a", "box": [0, 0, 256, 512]}, "divide by width and height"),
        ({"prompt": "a", "box": BOX, "weight": 0}, "must be > 0, got 0"),
        ({"prompt": "a", "box": BOX, "feather": 1.0}, "must be < 1.0, got 1"),
        ({"prompt": "a", "box": BOX, "bootstrap": 1.5}, "must be <= 1.0, got 1.5"),
    ],
)
def test_what_a_region_cannot_be_is_refused(region, told):
    with pytest.raises(ConfigError, match=told):
        run(region)


def test_one_table_is_no_list_of_regions():
    with pytest.raises(ConfigError, match=r"expected a list, got a table; put \[ \] around it"):
        Loader(registry()).structure({"prompt": "a", "regions": {"box": BOX, "prompt": "b"}}, RunConfig, "test")
    with pytest.raises(TypeError, match="must be a list of tables"):
        RunConfig(prompt="a", regions="fox")
