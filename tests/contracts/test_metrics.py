"""The laws of every metric, of what they look with and of what they compare with."""

import functools
import subprocess
import sys

import attrs
import pytest
import torch

from metric_files import save_picture, write_clip, write_inception
from vitrail import testing
from vitrail.core.config.loader import Loader
from vitrail.core.method.metric import Features, Metric, References
from vitrail.metrics.renders import DemoRenders
from vitrail.sampling.discovery import build_registry

REGISTRY = build_registry()
SIZES = ((128, 128), (131, 150), (160, 143))
NATIVE = 64  # pixels, so that there are several tiles and borders
SLOTS = {"metrics": Metric, "features": Features, "references": References}


def names(slot):
    return REGISTRY.names(slot)


@pytest.fixture(scope="module")
def needed(tmp_path_factory):
    """What classes want that work with a file."""
    folder = tmp_path_factory.mktemp("metrics")
    for number in range(3):
        save_picture(torch.rand(3, 220, 260, generator=torch.Generator().manual_seed(number)), folder / f"{number}.png")
    clip = write_clip(folder / "clip")
    return {
        "inception": {"weights": write_inception(folder / "inception.safetensors")},
        "clip": {"folder": clip, "classes": ("a fox", "o")},
        "clip-score": {"folder": clip},
        "folder": {"path": str(folder)},
    }


@functools.cache
def shown(number, size):
    (picture,) = [p for i, p in enumerate(DemoRenders(count=3).pictures(*size)) if i == number]
    return attrs.evolve(picture, native_size=NATIVE, rows=(NATIVE,), columns=(NATIVE,))


@pytest.mark.parametrize(("slot", "name"), [(slot, name) for slot in SLOTS for name in names(slot)])
def test_it_is_frozen_keyword_only_documented_and_written_as_a_table(slot, name, needed):
    cls, options = REGISTRY.get(slot, name), needed.get(name, {})
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}(")
    assert all(field.kw_only for field in attrs.fields(cls))
    assert cls(**options) == cls(**options)
    assert hash(cls(**options)) == hash(cls(**options))
    loader = Loader(REGISTRY)
    table = loader.unstructure(cls(**options))
    assert table["type"] == name
    assert loader.structure(table, SLOTS[slot], "a table") == cls(**options)


@pytest.mark.parametrize("name", names("metrics"))
def test_metrics(name, needed):
    metric = REGISTRY.get("metrics", name)(**needed.get(name, {}))
    testing.check_metric(metric, [shown(number, size) for number, size in enumerate(SIZES)])


@pytest.mark.parametrize("name", names("features"))
def test_features(name, needed):
    features = REGISTRY.get("features", name)(**needed.get(name, {}))
    testing.check_features(features, torch.stack([shown(number, SIZES[1]).picture for number in (0, 1)]))


@pytest.mark.parametrize("name", names("features"))
def test_features_say_what_they_have_learned(name, needed):
    """Without it, answers of other weights would be taken for those of these."""
    features = REGISTRY.get("features", name)(**needed.get(name, {}))
    assert features.digest == REGISTRY.get("features", name)(**needed.get(name, {})).digest
    assert len(features.digest) == 64


@pytest.mark.parametrize("name", names("references"))
def test_references(name, needed):
    testing.check_references(REGISTRY.get("references", name)(**needed.get(name, {})))


def test_importing_the_metrics_loads_nothing_heavy():
    probe = "import sys, vitrail.metrics; print(*{'torch', 'torchmetrics', 'transformers', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split()
