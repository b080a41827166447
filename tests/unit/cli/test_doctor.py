"""The text for bug reports tells what is broken, also torch, and nothing of the user."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from command_line import start
from vitrail.cli import doctor
from vitrail.core.config.registry import Failure
from vitrail.sampling.discovery import build_registry

PYPROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
BROKEN = {  # what happens when torch is imported -> what is told
    "raise OSError('/home/jane/lib/libcudart.so.12: cannot open shared object file')": (
        "torch cannot be imported: OSError: ~/lib/libcudart.so.12: cannot open shared object file"
    ),
    "import os; os.abort()": "torch cannot be imported: the process was ended by SIGABRT",
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_torch_is_told_and_the_rest_is_there(tmp_path, monkeypatch, source):
    (tmp_path / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    process = start(tmp_path, "doctor")
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (1, "")
    assert f"Broken: {BROKEN[source]}" in out
    for part in ("  torch 2", "  unknown, without torch", "  gloo: unknown", "builtin, from vitrail", "  demo, from"):
        assert part in out
    assert "jane" not in out and "Nothing that a run needs is missing" not in out


def test_what_works_is_no_complaint(capsys):
    doctor.probe()
    messages = [json.loads(line.removeprefix(doctor.MARK)) for line in capsys.readouterr().out.splitlines() if line]
    found = {name: value for each in messages for name, value in each.items()}
    assert "broken" not in found
    assert re.match(r"cpu: \d+ threads on ", found["devices"][0]) and set(found["comm"]) == {"gloo", "nccl"}
    assert found["comm"]["gloo"] == ""


def test_every_requirement_of_the_project_is_read():
    extras = PYPROJECT["optional-dependencies"]
    lines = [*PYPROJECT["dependencies"], *(f'{each}; extra == "{name}"' for name in extras for each in extras[name])]
    assert all(doctor.REQUIREMENT.fullmatch(line) for line in lines)
    assert len(doctor.requirements(lines)) == len(lines)
    assert set(doctor.DEVELOPERS) <= set(extras)


def test_what_is_missing_or_old_is_a_problem_unless_an_extra_asks_for_it():
    asked = doctor.requirements(
        ["attrs>=999", "pluggy>=1.7", "no-such-library", 'no-such-plotter>=2; extra == "plot"', "rich>=13.9"]
    )
    assert [each.complaint for each in asked] == ["too old, 999 or newer is needed", "", "missing", "missing", ""]
    told = list(doctor.complaints(asked, doctor.Probed(), build_registry()))
    assert [line.rpartition(": ")[2] for line in told] == ["pip install 'attrs>=999'", "pip install 'no-such-library'"]


def test_a_plugin_that_stops_runs_is_a_problem_and_another_is_mentioned(names):
    broken = build_registry()
    broken.failures += [Failure("pale", "pale 1", "ImportError('x')"), Failure("loud", "loud 2", "is taken", True)]
    assert list(doctor.complaints([], doctor.Probed(), broken)) == ["Broken: plugin loud: is taken"]
    assert not list(doctor.complaints([], doctor.Probed(), names))
    assert {"  pale, from pale 1: cannot be loaded: ImportError('x')", "  loud, from loud 2: refused: is taken"} <= set(
        doctor._of_plugins(broken)
    )


def test_models_of_the_cache_are_found_once_each(tmp_path, monkeypatch, names):
    from huggingface_hub import constants

    for folder in ("models--org--sd/snapshots/a", "models--org--sd/snapshots/b", "models--org--words/snapshots/c"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("models--org--sd/snapshots/a", "models--org--sd/snapshots/b"):
        (tmp_path / folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    lines = [line for line in doctor._of_models(names) if "org/" in line]
    assert lines == ["  org/sd, StableDiffusionPipeline, in the hub's cache"]


def test_no_home_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/anna")
    told = "in /srv/anna/.cache, '/home/bob/x', C:\\Users\\carl\\y and /Users/dora, not /srv/annabel"
    assert doctor.without_homes(told) == "in ~/.cache, '~/x', ~\\y and ~, not /srv/annabel"


def test_secrets_of_the_environment_stay_there():
    own = {"VITRAIL_TOKEN": "0123456789abcdef", "VITRAIL_SECRET": "s3cret"}
    assert list(doctor._of_settings(own))[2:] == ["  VITRAIL_SECRET is set", "  VITRAIL_TOKEN is set"]
    environment = {"HF_TOKEN": "x", "HF_HOME": "/models", "CUDA_VISIBLE_DEVICES": "1", "USER": "anna"}
    assert list(doctor._of_settings(environment))[2:] == ["  CUDA_VISIBLE_DEVICES=1", "  HF_HOME=/models"]
