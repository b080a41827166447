"""The laws of every slot, over everything that is registered."""

import attrs
import pytest
import torch

from rrdb_files import write
from vitrail import testing
from vitrail.core.engine.micro_batches import gather_views
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.sampling.discovery import build_registry

REGISTRY = build_registry()


def strategies(slot):
    return [pytest.param(entry.value, id=entry.name) for entry in REGISTRY.entries(slot)]


@pytest.mark.parametrize("cls", strategies("patching"))
def test_patching(cls):
    testing.check_patching(cls)


@pytest.mark.parametrize("cls", strategies("fusion"))
def test_fusion(cls):
    testing.check_fusion(cls)


def fused(patching, fusion, wrap):
    """A canvas prediction, and the same cut into views and fused again."""
    strategy, step, canvas = patching(), testing.make_step(3), Canvas(24, 42, 16, wrap=wrap)
    canvas = canvas.padded(*strategy.granularity(canvas))
    latents, output = (Streams(0).normal((2, 4, canvas.height, canvas.width), name) for name in ("x", "noise"))
    views = strategy.patch(step, canvas, 4, Streams(1)).canonical().views
    cut = Prediction(gather_views(latents, views), gather_views(output, views), step)
    return output, fusion().fuse(step, views, cut, latents)


@pytest.mark.parametrize("patching", strategies("patching"))
@pytest.mark.parametrize("fusion", strategies("fusion"))
def test_what_is_cut_from_a_canvas_fuses_to_the_canvas(patching, fusion):
    try:
        fused(patching, fusion, "none")
    except ValueError as error:
        pytest.skip(f"not for each other: {error}")
    for wrap in testing.WRAPS:
        output, again = fused(patching, fusion, wrap)
        torch.testing.assert_close(again, output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", strategies("guidance"))
def test_guidance(cls):
    testing.check_guidance(cls)


@pytest.mark.parametrize("cls", strategies("masking"))
def test_masking(cls):
    testing.check_masking(cls)


@pytest.mark.parametrize("cls", strategies("prompting"))
def test_prompting(cls):
    testing.check_prompting(cls)


NEEDS_A_FILE = {"rrdbnet": lambda cls, folder: cls(file=write(folder / "net.safetensors"), tile=16)}


@pytest.mark.parametrize("entry", [pytest.param(e, id=e.name) for e in REGISTRY.entries("upscaler")])
def test_upscaler(entry, tmp_path):
    make = NEEDS_A_FILE.get(entry.name)
    testing.check_upscaler(entry.value if make is None else make(entry.value, tmp_path))


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(e, id=f"{s}-{e.name}")
        for s in ("patching", "guidance", "masking", "fusion", "prompting", "upscaler")
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
