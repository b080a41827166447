"""Plugins that are attached to runs, from the command line, an experiment, or because they are installed."""

import functools
import json
import re

import pytest
from PIL import Image

from command_line import vitrail
from tiny_families import tiny_sd
from vitrail import hookimpl
from vitrail.comm.backends.in_process import InProcess
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import installed
from vitrail.sampling.run_plugins import load_plugins, wrapping
from vitrail.sampling.sampler import Sampler

PROBE = """
from pathlib import Path

from vitrail import hookimpl


class Probe:
    @hookimpl
    def vitrail_step_end(self, step):
        with Path("probe.txt").open("a") as file:
            file.write(f"{step.index}\\n")


class Brighter:
    @hookimpl(wrapper=True)
    def vitrail_fuse(self):
        return (yield) * 0.5  # another picture


class Picky:
    def __init__(self, options):
        pass


class Leaves:
    def __init__(self):
        raise SystemExit(0)


brighter = Brighter()
nothing = object()
"""
WORDS = ["a fox", "--size", "64", "--steps", "2", "-m", "direct", "--model", "m"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "probe_" + re.sub(r"\W", "_", request.node.name)
    (tmp_path / f"{name}.py").write_text(PROBE)
    (tmp_path / f"{name}_leaves.py").write_text("raise SystemExit(0)\n")
    tiny_sd().save_pretrained(tmp_path / "m")
    return functools.partial(vitrail, monkeypatch, capsys), name


def pixels(path):
    return Image.open(path).tobytes()


def recipe(path):
    return json.loads(Image.open(path).text["vitrail.run"])


def test_a_plugin_of_the_command_line_watches_and_changes_nothing(run, tmp_path):
    call, name = run
    assert call("sample", *WORDS, "-o", "plain.png").code == 0
    watched = call("sample", *WORDS, "--plugin", f"{name}:Probe", "-o", "watched.png")
    assert watched.code == 0, watched
    assert (tmp_path / "probe.txt").read_text() == "0\n1\n"
    assert pixels("plain.png") == pixels("watched.png")
    assert recipe("watched.png") == recipe("plain.png")
    again = call("replay", "watched.png", "--model", "m", "--plugin", f"{name}:Probe", "-o", "again.png")
    assert again.code == 0 and "note:" not in again.out
    assert (tmp_path / "probe.txt").read_text() == 2 * "0\n1\n"


def test_one_that_wraps_a_stage_is_part_of_the_recipe_and_missed_at_replay(run):
    call, name = run
    wraps = ["--plugin", f"{name}:brighter"]
    assert call("sample", *WORDS, "-o", "plain.png").code == 0
    assert call("sample", *WORDS, *wraps, "-o", "wrapped.png").code == 0
    assert pixels("plain.png") != pixels("wrapped.png")
    assert list(recipe("wrapped.png")["plugins"]) == [f"{name}:brighter"]
    with_it = call("replay", "wrapped.png", "--model", "m", *wraps, "-o", "with.png")
    assert with_it.code == 0 and "note:" not in with_it.out
    assert pixels("with.png") == pixels("wrapped.png")
    without = call("replay", "wrapped.png", "--model", "m", "-o", "without.png")
    assert without.code == 0 and f"note: made with plugin '{name}:brighter'" in " ".join(without.out.split())
    added = call("replay", "plain.png", "--model", "m", *wraps, "-o", "added.png")
    assert f"note: made without plugin '{name}:brighter'" in " ".join(added.out.split())


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        ("{name}", "write MODULE:OBJECT"),
        ("no_such_module:Probe", "no_such_module cannot be imported"),
        ("{name}:Prob", "has no 'Prob' (did you mean 'Probe'?)"),
        ("{name}:Picky", "Picky is a class and wants arguments"),
        ("{name}:nothing", "implements no hook"),
        ("{name}_leaves:Probe", "{name}_leaves cannot be imported: SystemExit(0)"),
        ("{name}:Leaves", "Leaves cannot be made: SystemExit(0)"),
    ],
)
def test_what_is_no_plugin_is_refused_with_what_to_write(run, plugin, told):
    call, name = run
    answer = call("sample", *WORDS, "--plugin", plugin.format(name=name), "-o", "a.png")
    assert answer.code == 2 and told.format(name=name) in answer.err


def test_a_name_that_is_given_twice_is_refused(run):
    _, name = run
    with pytest.raises(ConfigError, match="is given twice"):
        load_plugins([f"{name}:Probe", f"{name}:Probe"])


EXPERIMENT = """
model = "m"
prompts = ["a fox"]
sizes = ["64"]
methods = ["direct"]
run = {{ num_inference_steps = 2 }}
ranks = [{ranks}]
comm = "{comm}"
plugins = [{plugins}]
"""


def sampled(call, tmp_path, *words, plugins="", comm="gloo", ranks=1):
    (tmp_path / "e.toml").write_text(EXPERIMENT.format(plugins=plugins, comm=comm, ranks=ranks))
    return call("run", "e.toml", "-o", "out", *words)


def test_an_experiments_plugins_are_attached_and_those_that_wrap_make_other_cells(run, tmp_path):
    call, name = run
    assert sampled(call, tmp_path).code == 0
    watched = sampled(call, tmp_path, "--plugin", f"{name}:Probe")
    assert watched.code == 0 and "1 of 1 cells are done" in watched.out
    assert not (tmp_path / "probe.txt").exists()
    wrapped = sampled(call, tmp_path, "--plugin", f"{name}:Probe", plugins=f'"{name}:brighter"')
    assert wrapped.code == 0 and "0 of 1 cells are done" in wrapped.out
    assert (tmp_path / "probe.txt").read_text() == "0\n1\n"
    assert len({pixels(path) for path in tmp_path.glob("out/pictures/*/*.png")}) == 2
    done = sampled(call, tmp_path, plugins=f'"{name}:brighter"')
    assert "1 of 1 cells are done" in done.out
    missing = sampled(call, tmp_path, plugins='"nowhere:it"')
    assert missing.code == 2 and "nowhere cannot be imported" in missing.err


class Threads(InProcess):
    """A third party's backend."""


def test_an_experiment_takes_any_registered_backend(run, tmp_path, monkeypatch):
    call, name = run
    monkeypatch.setattr(installed(), "_entries", dict(installed()._entries))
    installed().add("comm", "my-threads", Threads)
    answer = sampled(call, tmp_path, "--plugin", f"{name}:brighter", comm="my-threads", ranks=2)
    assert answer.code == 0, answer
    threads = next(tmp_path.glob("out/pictures/*/*.png"))
    assert recipe(threads)["plugins"], "ranks have the plugins, too"
    assert call("sample", *WORDS, "--plugin", f"{name}:brighter", "-o", "alone.png").code == 0
    assert pixels(threads) == pixels("alone.png")
    wrong = sampled(call, tmp_path, comm="my-thread", ranks=2)
    assert wrong.code == 2 and "did you mean 'my-threads'?" in wrong.err


class Watches:
    def __init__(self):
        self.steps = 0

    @hookimpl
    def vitrail_step_end(self, step):
        self.steps += 1


class Doubles:
    @hookimpl(wrapper=True)
    def vitrail_fuse(self):
        return (yield) * 2


def test_an_installed_plugin_watches_every_run(pipe, monkeypatch):
    watches, call = Watches(), {"height": 64, "width": 64, "num_inference_steps": 2}
    plain = Sampler.from_pipeline(pipe, "direct")("a", **call)
    monkeypatch.setattr(installed(), "observers", {"watch": watches, "double": Doubles()})
    sampler = Sampler.from_pipeline(pipe, "direct")
    result = sampler("a", **call)
    assert watches.steps == 2
    assert list(result.recipes[0].plugins) == ["double"]
    assert result.images[0].tobytes() != plain.images[0].tobytes()
    sampler.again().again()("a", **call)
    assert watches.steps == 4, "it is attached once"
    assert result.recipes[0].digest != plain.recipes[0].digest


def test_versions_are_those_of_distributions_or_of_files():
    assert wrapping([("watch", Watches())]) == {}
    here = wrapping([("double", Doubles())])["double"]
    assert len(here) == 12 and int(here, 16) >= 0
