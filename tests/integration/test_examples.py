"""Every example is short and runs as it stands, on the model that ships inside."""

import contextlib
import functools
import io
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from often import every
from vitrail.cli import app as cli
from vitrail.sampling.methods import load_method
from vitrail.sampling.recipe import read_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
SIZES = {"from_pipeline": (320, 128)}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("path", [*SCRIPTS, *EXAMPLES.glob("*.toml")], ids=lambda path: path.name)
def test_an_example_is_short_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 30
    assert text.startswith(('"""', "# "))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs an example, once, in a folder of its own; gives what it printed and the folder."""

    @functools.cache
    def run(name):
        folder, out = tmp_path_factory.mktemp(name), io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return out.getvalue(), folder

    return run


@pytest.mark.parametrize("name", every(2, [path.stem for path in SCRIPTS]))
def test_an_example_makes_its_picture(run, name):
    _, folder = run(name)
    picture = pixels(folder / f"{name}.png")
    assert picture.shape[1::-1] == SIZES.get(name, (256, 256))
    assert picture.std() > 5  # a picture, not a plain colour


def test_the_observer_sees_every_guided_step(run):
    out, _ = run("observe")
    moved = [float(number) for number in re.findall(r"^step \d+: moved by (\S+)$", out, re.MULTILINE)]
    assert len(moved) == load_method("asg-plus").boundaries(12)[0]  # the steps of the structure stage
    assert min(moved) > 0


def test_the_callback_stops_the_run(run):
    out, _ = run("callback")
    assert out.count("timestep") == 10
    assert "interrupted: True, steps: 10" in out


def test_the_file_and_its_twin_in_python_give_one_picture(run, monkeypatch):
    _, folder = run("fox")
    monkeypatch.setattr("vitrail.cli.sample.configure_logging", lambda *_: None)  # the process's logging is pytest's
    again = folder / "from-file.png"
    cli.app(["sample", "--config", str(EXAMPLES / "fox.toml"), "-o", str(again)], standalone_mode=False)
    assert np.array_equal(pixels(folder / "fox.png"), pixels(again))
    assert read_recipe(folder / "fox.png") == read_recipe(again)
