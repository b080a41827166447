"""The laws of every slot, over everything that is registered."""

import attrs
import pytest

from vitrail import testing
from vitrail.discovery import build_registry

REGISTRY = build_registry()


def strategies(slot):
    return [pytest.param(entry.value, id=entry.name) for entry in REGISTRY.entries(slot)]


@pytest.mark.parametrize("cls", strategies("patching"))
def test_patching(cls):
    testing.check_patching(cls)


@pytest.mark.parametrize("cls", strategies("fusion"))
def test_fusion(cls):
    testing.check_fusion(cls)


@pytest.mark.parametrize("cls", strategies("guidance"))
def test_guidance(cls):
    testing.check_guidance(cls)


@pytest.mark.parametrize("cls", strategies("masking"))
def test_masking(cls):
    testing.check_masking(cls)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(e, id=f"{s}-{e.name}")
        for s in ("patching", "guidance", "masking", "fusion")
        for e in REGISTRY.entries(s)
    ],
)
def test_strategies_are_frozen_keyword_only_and_documented(entry):
    cls = entry.value
    fields = attrs.fields(cls)
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert all(f.kw_only for f in fields) or len(fields) < 2
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    for name in (n for n in vars(cls) if not n.startswith("_") and callable(getattr(cls, n))):
        assert getattr(cls, name).__doc__, f"{cls.__name__}.{name} has no docstring"
