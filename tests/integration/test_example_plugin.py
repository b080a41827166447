"""A third-party package, installed as any is: found by its entry point, checked, listed and used."""

import os
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from vitrail import testing
from vitrail.core.config.files import read_file
from vitrail.core.config.loader import Loader
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import GROUP, build_registry, registry
from vitrail.sampling.sampler import Sampler

PACKAGE = Path(__file__).parents[2] / "examples" / "vitrail-example"
THEIR_TESTS = runpy.run_path(str(PACKAGE / "tests" / "test_vitrail_example.py"))
CALL = {"height": 128, "width": 96, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}


@pytest.fixture(scope="module")
def entries():
    found = [entry for entry in metadata.entry_points(group=GROUP) if entry.name == "example"]
    assert found, "install it as `make test` does: pip install --no-deps -e examples/vitrail-example"
    return found


@pytest.fixture(scope="module")
def installed(entries):
    return build_registry(entry_points=entries, strict=True)


def method(installed, **changes):
    table = read_file(installed.path("methods", "example-centered"))
    for stage in table["stages"]:
        stage.update({slot: value for slot, value in changes.items() if slot in stage})
    return Loader(installed).structure(table, Composition, "example-centered")


@pytest.mark.parametrize("name", sorted(name for name in THEIR_TESTS if name.startswith("test_")))
def test_its_own_tests_pass(name):
    THEIR_TESTS[name]()


def test_it_is_registered_under_its_distribution(installed):
    assert installed.plugins["example"] == f"vitrail-example {metadata.version('vitrail-example')}"
    added = {(e.slot, e.name) for e in installed._entries.values() if e.plugin == "example"}
    masks = {("masking", "center"), ("masking", "picture")}
    strategies = {("guidance", "clamp-clean"), ("metrics", "colourfulness")} | masks
    assert added == strategies | {("methods", "example-centered")}


def test_its_strategies_keep_the_contracts(installed):
    testing.check_guidance(installed.get("guidance", "clamp-clean"))
    testing.check_masking(installed.get("masking", "center"))


def test_its_method_runs_with_its_observer(installed, pipe):
    from vitrail_example import Probe

    probe = Probe()
    sampler = Sampler.from_pipeline(pipe, method(installed), plugins=[("probe", probe)])
    watched = sampler("a fox", **CALL).latents
    assert probe.steps == CALL["num_inference_steps"]
    assert len(probe.sharpness) == probe.steps
    assert min(probe.sharpness) > 0
    assert torch.equal(Sampler.from_pipeline(pipe, method(installed))("a fox", **CALL).latents, watched)


@pytest.mark.parametrize("change", [{"masking": "none"}, {"guidance": [{"type": "async", "scale": 1.0}]}])
def test_its_strategies_matter(installed, pipe, change):
    whole, without = (
        Sampler.from_pipeline(pipe, composition)("a fox", **CALL).latents
        for composition in (method(installed), method(installed, **change))
    )
    assert not torch.equal(whole, without)


def test_its_method_goes_to_data_and_back(installed):
    loader, composition = Loader(installed), method(installed)
    assert loader.structure(loader.unstructure(composition), Composition, "again") == composition


def test_nothing_of_it_is_known_where_it_is_switched_off():
    assert os.environ["VITRAIL_DISABLE_PLUGINS"] == "all"
    with pytest.raises(ConfigError, match="no masking named 'center'"):
        registry().get("masking", "center")


@pytest.mark.thorough
def test_an_experiment_of_its_method_and_its_metric(installed, tmp_path):
    """Whole, in a process where it is found by its entry point."""
    file = PACKAGE.parent / "experiment.toml"
    small = ["--set", "prompts=['a fox on a snow field']", "--set", "run.num_inference_steps=2", "--out", str(tmp_path)]
    assert "2 rows" in listed("run", str(file), *small)
    told = listed("report", str(tmp_path))
    assert "colourful" in told
    assert "example-centered" in told


def listed(*command, disabled=None):
    environment = {k: v for k, v in os.environ.items() if k != "VITRAIL_DISABLE_PLUGINS"}
    environment |= {"VITRAIL_DISABLE_PLUGINS": disabled} if disabled else {}
    arguments = [sys.executable, "-m", "vitrail", *command]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_command_line_lists_it_and_its_names(installed):
    _, here, told = listed("plugins").partition(installed.plugins["example"])
    assert here
    assert {"clamp-clean", "center", "example-centered"} <= set(told.replace(",", " ").split())
    assert "clean latents without outliers" in " ".join(listed("methods").split())


def test_the_command_line_can_switch_it_off():
    assert "vitrail-example" not in listed("plugins", disabled="example")
