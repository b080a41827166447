"""Stages that would ignore what they are told, or do something else: refused when a method is read."""

import pytest

from vitrail.core.config.loader import Loader
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method

WHOLE = {"patching": "whole", "fusion": "average"}
WINDOWS = {"patching": "windows", "fusion": "average"}
LATTICE = {"patching": "lattice", "fusion": "scatter"}
REMEMBERS = WHOLE | {"remember": True}
PIXELS = {"enter": {"resize": "pixels"}}
PFSA, RECALLED = {"masking": "pfsa"}, {"masking": "remembered-attention"}


def made(*stages, grows=False):
    table = {"stages": list(stages)} | ({"cascade": {}} if grows else {})
    return Loader(build_registry()).structure(table, Composition, "test")


def grown(stage):
    return made(REMEMBERS, stage | PIXELS, grows=True)


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (WHOLE | PFSA | {"guidance": ["upsample"]}, "ParameterFreeAttention would be ignored, since UpsampleGuidance"),
        (WHOLE | PFSA | {"guidance": ["attentive", "upsample"]}, "Attentive and UpsampleGuidance read no mask"),
        (WHOLE | PFSA | {"guidance": ["none", "wavelet"]}, "Wavelet reads no mask; set masking = .none."),
        (WINDOWS | RECALLED | {"guidance": ["skip-residual"]}, "RememberedAttention would be ignored"),
        (
            WINDOWS | PFSA | {"guidance": ["anchored"]},
            "ignored by Anchored: it is of the key view.*remembered-attention",
        ),
        (LATTICE | PFSA | {"guidance": ["sync", "anchored"]}, "ignored by Anchored"),
    ],
)
def test_a_mask_that_nobody_can_read_is_refused(stage, told):
    with pytest.raises(ConfigError, match=rf"stages\.1\.masking: .*{told}"):
        grown(stage)


@pytest.mark.parametrize(
    "stage",
    [
        WHOLE | PFSA,  # to be looked at, as heat maps do
        WHOLE | PFSA | {"guidance": ["none"]},
        WINDOWS | {"guidance": ["wavelet"]},
        LATTICE | PFSA | {"guidance": ["async", "upsample"]},
        LATTICE | RECALLED | {"guidance": ["sync", "anchored"]},
        WINDOWS | RECALLED | {"guidance": ["anchored"]},
        WINDOWS | RECALLED | {"guidance": ["none"]},
        WINDOWS | {"guidance": ["anchored"]},
    ],
)
def test_a_mask_that_is_read_and_one_beside_no_guidance_are_not(stage):
    assert grown(stage)


@pytest.mark.parametrize("source", ["up-block-attention", "joint-attention", "pfsa"])
def test_a_method_without_guidance_takes_any_mask_for_its_heat_map(source):
    assert load_method("direct", [f"stages.0.masking={source}"])


def test_windows_cannot_be_remembered_as_the_picture():
    with pytest.raises(ConfigError, match=r"stages\.0\.remember: .*a view of Windows shows a part of it.*whole"):
        made(WINDOWS | {"remember": True})
    for stage in (WHOLE, LATTICE, {"patching": "dilated", "fusion": "scatter"}):
        assert made(stage | {"remember": True}).stages[0].remember


@pytest.mark.parametrize("guidance", ["sync", "async", "anchored"])
@pytest.mark.parametrize("stage", [WINDOWS, LATTICE])
def test_a_map_of_the_picture_serves_windows_and_lattices(stage, guidance):
    assert grown(stage | RECALLED | {"guidance": [guidance]})


@pytest.mark.parametrize("guidance", ["anchored", "skip-residual", "wavelet"])
def test_what_follows_the_size_before_wants_one(guidance):
    told = r"stages\.0: \w+ follows the picture of the size before, and the first size has none.*'enter'"
    with pytest.raises(ConfigError, match=told):
        made(WHOLE | {"guidance": [guidance]})
    with pytest.raises(ConfigError, match=told):
        made(WHOLE | {"guidance": [guidance]}, WHOLE | PIXELS, grows=True)
    assert made(WHOLE, WHOLE | PIXELS | {"until": 0.5}, WHOLE | {"guidance": [guidance]}, grows=True)


def test_a_canvas_that_is_changed_for_its_views_goes_with_no_views_of_their_own():
    dilated = {"patching": "dilated", "fusion": "scatter"}
    with pytest.raises(ConfigError, match=r"stages\.0\.patching: Dilated changes the canvas.*Synchronized"):
        made(dilated | {"guidance": ["synchronized"]})
    assert made(WINDOWS | {"guidance": ["synchronized"], "extra_views": [dilated]})
