"""A page for each slot: its example is whole, keeps the contract and registers, and the page names every member."""

import inspect
import re
import tomllib
from pathlib import Path

import pytest

from vitrail.comm import Backend
from vitrail.comm.backend import JoiningBackend
from vitrail.core.config.loader import Loader
from vitrail.core.method import members, protocols
from vitrail.core.method.composition import Composition
from vitrail.core.method.metric import FeatureExtractor, Metric
from vitrail.sampling.discovery import build_registry

FOLDER = Path(__file__).parents[1] / "docs" / "how-to"
SLOTS = {  # slot -> its page, and where its members are declared
    "patching": ("write-a-patching", protocols.Patching, members.OptionalPatching),
    "guidance": ("write-a-guidance", protocols.Guidance, protocols.MessageGuidance, members.OptionalGuidance),
    "masking": ("write-a-masking", protocols.Masking, members.OptionalMasking),
    "fusion": ("write-a-fusion", protocols.Fusion, members.OptionalFusion),
    "prompting": ("write-a-prompting", protocols.Prompting, members.OptionalPrompting),
    "rectification": ("write-a-rectification", protocols.Rectification, members.OptionalRectification),
    "upscaler": ("write-an-upscaler", protocols.Upscaler, members.OptionalUpscaler),
    "metrics": ("write-a-metric", Metric, FeatureExtractor, members.OptionalFeatureExtractor),
    "comm": ("write-a-transport", Backend, JoiningBackend, members.OptionalBackend),
}


def page(slot):
    return (FOLDER / f"{SLOTS[slot][0]}.md").read_text()


def declared(slot):
    """Public members of a slot's protocol and the optional ones."""
    own = [cls for each in SLOTS[slot][1:] for cls in each.__mro__ if cls.__module__.startswith("vitrail")]
    names = {name for cls in own for name in (*vars(cls), *inspect.get_annotations(cls))}
    return {name for name in names - {"of"} if not name.startswith("_")}


def example(slot):
    """The code of the page's first section, which is whole."""
    section = re.split(r"^## ", page(slot), flags=re.M)[1]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))


def test_every_slot_of_strategies_has_a_page():
    assert set(SLOTS) == {*members.OPTIONAL, "metrics", "comm"}


@pytest.mark.parametrize("slot", SLOTS)
def test_a_page_names_every_member(slot):
    assert declared(slot)
    assert {name for name in declared(slot) if not re.search(rf"`[^`]*\b{name}\b[^`]*`", page(slot))} == set()


@pytest.mark.parametrize("slot", SLOTS)
def test_an_example_checks_itself_registers_and_is_taken(slot):
    code, names = example(slot), build_registry()
    space = {"__name__": f"example_of_{slot}"}
    exec(compile(code, SLOTS[slot][0], "exec"), space)
    assert "\ncheck_" in code or slot == "comm"
    before = set(names.names(slot))
    space["vitrail_register"](names)
    (name,) = set(names.names(slot)) - before
    if slot == "comm":
        assert f"--comm {name}`" in page(slot)
        return
    (line,) = re.findall(r"^`(\w+ = .*?)` in an? .* file then takes it", page(slot), re.M)
    table = tomllib.loads(line)
    assert f'"{name}"' in line
    if slot != "metrics":
        Loader(names).structure(of_method(table), Composition, SLOTS[slot][0])


def of_method(table):
    """A method with a line of a page in it."""
    stage = {"patching": "windows", "fusion": "average", "guidance": ["sync"] if "masking" in table else []}
    return {"stages": [stage]} | table if "finish" in table else {"stages": [stage | table]}


def test_a_member_that_is_missing_would_be_seen():
    assert {"needs", "point", "guide", "lag", "reads_mask", "check", "digest"} <= declared("guidance")
    assert "of" not in declared("guidance")
