"""The laws of every metric, of what they look with and of what they compare with."""

import functools
import subprocess
import sys

import attrs
import pytest
import torch

from metric_files import save_picture, write_clip, write_inception
from vitrail.core.config import Loader
from vitrail.core.measuring import Column, Features, Metric, References
from vitrail.discovery import build_registry
from vitrail.errors import ConfigError
from vitrail.metrics.renders import DemoRenders

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


def seen(metric):
    return torch.stack([metric.eye.look(shown(number, size)) for number, size in enumerate(SIZES)])


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
def test_metrics_have_a_number_for_each_column(name, needed):
    metric = REGISTRY.get("metrics", name)(**needed.get(name, {}))
    looked = seen(metric)
    assert looked.is_floating_point() and looked.device.type == "cpu"
    found = metric.gather(looked, looked.clone() if metric.needs_reference else None)
    assert len(found) == len(metric.columns) == len({column.name for column in metric.columns})
    assert all(isinstance(column, Column) for column in metric.columns)
    assert all(isinstance(number, float) for number in found)
    assert not any(number != number for number in found)  # nan


@pytest.mark.parametrize("name", names("metrics"))
def test_metrics_see_the_same_again_and_know_no_order(name, needed):
    metric = REGISTRY.get("metrics", name)(**needed.get(name, {}))
    looked, again = seen(metric), seen(REGISTRY.get("metrics", name)(**needed.get(name, {})))
    assert torch.equal(looked, again)
    reference = looked[:2] if metric.needs_reference else None
    turned = metric.gather(looked[[2, 0, 1]], reference)
    assert turned == pytest.approx(metric.gather(looked, reference), rel=1e-6, abs=1e-6)
    assert metric.gather(looked, reference) == metric.gather(looked, reference)
    assert repr(metric.eye) == repr(REGISTRY.get("metrics", name)(**needed.get(name, {})).eye)


@pytest.mark.parametrize("name", names("metrics"))
def test_metrics_that_compare_say_so(name, needed):
    metric = REGISTRY.get("metrics", name)(**needed.get(name, {}))
    if metric.needs_reference:
        with pytest.raises(ConfigError, match="reference"):
            metric.gather(torch.rand(3, 4, 5), None)


@pytest.mark.parametrize("name", names("features"))
def test_features_do_not_depend_on_the_batch(name, needed):
    features = REGISTRY.get("features", name)(**needed.get(name, {}))
    pictures = torch.stack([shown(number, SIZES[1]).picture for number in (0, 1)])
    for look in (features.extract, features.probabilities):
        found = look(pictures)
        assert found.ndim == 2 and found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found[1:], look(pictures[1:]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[0], found[1], rtol=1e-4)
    torch.testing.assert_close(features.probabilities(pictures).sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", names("features"))
def test_features_say_what_they_have_learned(name, needed):
    """Without it, answers of other weights would be taken for those of these."""
    features = REGISTRY.get("features", name)(**needed.get(name, {}))
    assert features.digest == REGISTRY.get("features", name)(**needed.get(name, {})).digest
    assert len(features.digest) == 64


@pytest.mark.parametrize("name", names("metrics"))
def test_a_column_lies_within_its_ends(name, needed):
    metric = REGISTRY.get("metrics", name)(**needed.get(name, {}))
    looked = seen(metric)
    found = metric.gather(looked, looked[:2] if metric.needs_reference else None)
    for column, value in zip(metric.columns, found, strict=True):
        assert column.lowest - 1e-4 <= value <= column.highest + 1e-4


@pytest.mark.parametrize("name", names("references"))
def test_references_are_the_same_pictures_at_any_size(name, needed):
    references = REGISTRY.get("references", name)(**needed.get(name, {}))
    assert references.digest == REGISTRY.get("references", name)(**needed.get(name, {})).digest
    for height, width in ((64, 64), (65, 97)):
        pictures = [each.picture for each, _ in zip(references.pictures(height, width), range(3), strict=False)]
        again = [each.picture for each, _ in zip(references.pictures(height, width), range(3), strict=False)]
        assert all(picture.shape == (3, height, width) for picture in pictures)
        assert all(picture.min() >= 0 and picture.max() <= 1 for picture in pictures)
        assert all(torch.equal(*pair) for pair in zip(pictures, again, strict=True))
        assert not torch.equal(*pictures[:2])


def test_importing_the_metrics_loads_nothing_heavy():
    probe = "import sys, vitrail.metrics; print(*{'torch', 'torchmetrics', 'transformers', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.split()
