"""Registration, once per process: names, owners, failures, and classes that do not fit."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import attrs
import pytest
from structlog.testing import capture_logs

from vitrail import hookimpl
from vitrail.cli.arguments import prepare
from vitrail.cli.listing import plugin_lines, plugins
from vitrail.core.config.registry import Registry
from vitrail.errors import ConfigError, RegistrationError
from vitrail.sampling import discovery
from vitrail.sampling.discovery import BUILTINS, build_registry, installed


@attrs.frozen
class Fits:
    """A fusion that fits its slot."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def fuse(self, step, views, prediction, latents):
        return latents


def plugin(register):
    """A plugin whose registration calls ``register(registry)``."""
    return type("Plugin", (), {"vitrail_register": hookimpl(lambda self, registry: register(registry))})()


def entry(name, load, dist="somewhere"):
    return SimpleNamespace(name=name, value=f"{dist}:x", dist=SimpleNamespace(name=dist, version="1.0"), load=load)


def offers(name, dist, fusion):
    return entry(name, lambda: plugin(lambda registry: registry.add("fusion", fusion, Fits)), dist)


def refused(entries):
    """A registry of plugins that collide or do not fit: it can be looked at, and refuses to be used."""
    names = build_registry(entries)
    assert any(failure.stops for failure in names.failures)
    assert names.get("fusion", "average").__name__ == "Average"
    names.refuse_broken()


def broken():
    raise ImportError("cannot import name 'x' from 'torch'")


def test_a_taken_name_names_both_plugins():
    with pytest.raises(RegistrationError, match="fusion 'soft' comes from both plugin 'one' and plugin 'two'"):
        refused([offers("one", "a", "soft"), offers("two", "b", "soft")])


def test_a_built_in_name_cannot_be_taken_either():
    with pytest.raises(RegistrationError, match="fusion 'average' comes from both plugin 'builtin' and plugin 'one'"):
        refused([offers("one", "a", "average")])


def test_one_name_in_two_slots_is_no_collision():
    names = build_registry([offers("one", "a", "windows")])
    assert names.get("fusion", "windows") is Fits
    assert names.get("patching", "windows") is not Fits


@pytest.mark.parametrize("first", [offers("twin", "a", "soft"), entry("twin", broken, "a")])
def test_one_entry_point_name_twice_names_both_distributions(first):
    with pytest.raises(RegistrationError, match=r"plugin 'twin' is offered by both a 1\.0 and b 1\.0"):
        refused([first, offers("twin", "b", "hard")])


@pytest.mark.parametrize("name", BUILTINS)
def test_the_names_of_the_built_in_plugins_are_taken(name):
    with pytest.raises(RegistrationError, match=f"plugin '{name}' is offered by both vitrail"):
        refused([offers(name, "b", "hard")])


def leaves():
    raise SystemExit("this plugin needs a GPU")


@pytest.mark.parametrize(
    ("load", "told"),
    [
        (broken, "ImportError.*cannot import name"),
        (lambda: plugin(lambda registry: broken()), "ImportError.*cannot import name"),
        (leaves, "SystemExit.*needs a GPU"),
        (lambda: plugin(lambda registry: leaves()), "SystemExit.*needs a GPU"),
    ],
    ids=["at import", "at registration", "exit at import", "exit at registration"],
)
def test_a_plugin_that_cannot_be_imported_is_kept_as_a_failure(load, told):
    with capture_logs() as logs:
        names = build_registry([entry("sick", load, "sick-dist"), offers("well", "w", "soft")])
    (failure,) = names.failures
    assert (failure.plugin, failure.distribution) == ("sick", "sick-dist 1.0")
    assert re.search(told, failure.error)
    names.refuse_broken()  # whoever does not ask for its names can go on
    assert "sick" not in names.plugins
    assert names.get("fusion", "soft") is Fits  # those after it are loaded
    assert [log["plugin"] for log in logs if log["event"] == "plugin.load_failed"] == ["sick"]
    with pytest.raises(ConfigError, match=f"plugin 'sick' failed to load: {told}"):
        names.get("fusion", "from-the-sick-one")
    with pytest.raises(RegistrationError, match=r"plugin 'sick' \(sick-dist 1\.0\) failed to load"):
        build_registry([entry("sick", load, "sick-dist")], strict=True)


def ignored(self, registry):
    raise AssertionError


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        (type("P", (), {"vitrail_registr": hookimpl(ignored)})(), "vitrail_registr'"),
        (type("P", (), {"vitrail_register": hookimpl(lambda self, registri: None)})(), "registri"),
        (type("P", (), {"vitrail_register": hookimpl(lambda self, registri=None: None)})(), "registri"),
        (type("P", (), {"vitrail_register": hookimpl(ignored)}), r"forgotten the `\(\)`"),
        (type("P", (), {"vitrail_register": lambda self, registry: None})(), "implements no hook"),
    ],
    ids=["hook", "argument", "argument-with-default", "class", "undecorated"],
)
def test_mistakes_name_the_plugin(thing, told):
    with pytest.raises(RegistrationError, match=f"(?s)plugin 'mine'.*{told}"):
        refused([entry("mine", lambda: thing)])


def unfit(decorate=attrs.frozen, drop=(), **members):
    body = {"needs": frozenset(), "point": "views", "init": lambda self: None}
    body["guide"] = lambda self, step, subject, scene, state: (subject, state)
    body = {k: v for k, v in (body | members).items() if k not in drop}
    return decorate(type("Unfit", (), body))


def not_negative(instance, attribute, value):
    assert value >= 0


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (unfit()(), r"register the class, not an instance; remove the `\(\)`"),
        (unfit(drop=("guide", "init")), "lacks init, guide"),
        (unfit(decorate=lambda cls: cls), "must be a frozen attrs class"),
        (unfit(decorate=attrs.define), "must be a frozen attrs class"),
        (unfit(decorate=attrs.define, scale=attrs.field(default=1.0, validator=not_negative)), "must be a frozen"),
        (unfit(scale=attrs.field(default=1.0), __annotations__={"scale": "Hidden"}), "name 'Hidden' is not defined"),
        (unfit(point="sideways"), "point must be one of before, inputs, branches, views, canvas, after"),
    ],
    ids=["instance", "member", "no-attrs", "unfrozen", "unfrozen-with-validator", "annotation", "point"],
)
def test_unfit_classes_are_refused_with_plugin_slot_and_name(cls, told):
    with pytest.raises(RegistrationError, match=f"plugin 'mine': guidance 'bad': .*{told}"):
        refused([entry("mine", lambda: plugin(lambda registry: registry.add("guidance", "bad", cls)))])


def test_the_same_class_frozen_fits():
    Registry().add("guidance", "good", unfit(scale=attrs.field(default=1.0, validator=not_negative)))


def test_unknown_slots_and_missing_files_are_refused(tmp_path):
    with pytest.raises(RegistrationError, match=r"no such slot.*did you mean 'fusion'"):
        Registry().add("fusoin", "soft", Fits)
    with pytest.raises(RegistrationError, match=r"no such slot for files.*did you mean 'methods'"):
        Registry().add_file("method", "mine", tmp_path)
    with pytest.raises(RegistrationError, match=r"a TOML file is expected at 'gone\.toml'"):
        Registry().add_file("methods", "mine", tmp_path / "gone.toml")


def test_an_unknown_name_is_told_with_the_nearest_and_all(names):
    with pytest.raises(ConfigError, match=r"'avrage' \(did you mean 'average'\?\); known: average, "):
        names.get("fusion", "avrage")


def test_a_class_that_is_not_registered_has_no_name(names):
    assert names.name_of("fusion", names.get("fusion", "scatter")) == "scatter"
    with pytest.raises(ConfigError, match="Fits is not registered as fusion"):
        names.name_of("fusion", Fits)


def test_everything_built_in_has_an_owner_and_files_exist(names):
    assert set(names.plugins) == set(BUILTINS)
    for slot in ("patching", "guidance", "masking", "fusion", "backbones", "methods", "models"):
        entries = names.entries(slot)
        assert entries
        assert all(e.plugin in names.plugins for e in entries)
        assert all(e.value.exists() for e in entries if isinstance(e.value, Path))


@pytest.mark.parametrize(
    ("disabled", "left"), [("", {"one", "two"}), ("one", {"two"}), (" two , three", {"one"}), ("all", set())]
)
def test_plugins_are_switched_off_by_name(monkeypatch, disabled, left):
    found = [offers("one", "a", "soft"), offers("two", "b", "hard")]
    monkeypatch.setattr(discovery.metadata, "entry_points", lambda group: found if group == discovery.GROUP else [])
    monkeypatch.setenv("VITRAIL_DISABLE_PLUGINS", disabled)
    assert set(installed.__wrapped__().plugins) == left | set(BUILTINS)


def test_an_interrupt_while_plugins_are_loaded_is_no_failure_of_theirs():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_registry([entry("slow", interrupted)])


def test_collisions_and_unfit_classes_are_told_together_and_listed():
    names = build_registry(
        [
            offers("one", "a", "soft"),
            offers("two", "b", "soft"),
            entry("bad", lambda: plugin(lambda registry: registry.add("fusion", "My_Fusion", Fits)), "c"),
        ]
    )
    told = "\n".join(plugin_lines(names, 200))
    assert "one, from a 1.0\n  fusion" in told
    assert "refused: fusion 'soft' comes from both plugin 'one' and plugin 'two'" in told
    with pytest.raises(RegistrationError, match=r"(?s)'soft' comes from both.*a name is lower-case words"):
        names.refuse_broken()
    assert names.get("fusion", "soft") is Fits


def test_a_misspelt_hook_of_one_plugin_is_not_laid_to_the_next():
    wrong = entry("wrong", lambda: type("P", (), {"vitrail_registr": hookimpl(ignored)})())
    names = build_registry([wrong, offers("well", "w", "soft")])
    assert [failure.plugin for failure in names.failures] == ["wrong"]
    assert names.get("fusion", "soft") is Fits


def test_a_collision_stops_sampling_and_not_the_listing(monkeypatch, capsys):
    found = [offers("one", "a", "soft"), offers("two", "b", "soft")]
    monkeypatch.setattr(discovery.metadata, "entry_points", lambda group: found)
    monkeypatch.setenv("VITRAIL_DISABLE_PLUGINS", "")
    installed.cache_clear()
    try:
        plugins()
        assert "comes from both plugin" in " ".join(capsys.readouterr().out.split())
        with pytest.raises(RegistrationError, match="comes from both"):
            prepare({"prompt": "a fox"})
    finally:
        installed.cache_clear()


def cell(count):
    """What a notebook's cell defines each time it is run."""

    @attrs.frozen
    class Soft:
        needs: ClassVar[frozenset[str]] = frozenset()
        number: int = count

        def fuse(self, step, views, prediction, latents):
            return latents

    return Soft


def test_a_cell_that_is_run_again_replaces_its_own_class_alone():
    names = build_registry([offers("one", "a", "firm")])
    first, second = cell(1), cell(2)
    names.add("fusion", "soft", first)
    names.add("fusion", "soft", second)
    assert names.get("fusion", "soft") is second
    for name in ("soft", "firm", "average"):
        with pytest.raises(RegistrationError, match=f"fusion {name!r} comes from both"):
            names.add("fusion", name, unfit_for_fusion())
    with pytest.raises(RegistrationError, match="comes from both plugin 'one' and plugin 'this process'"):
        names.add("fusion", "firm", Fits)


def unfit_for_fusion():
    return attrs.frozen(type("Other", (), {"needs": frozenset(), "fuse": Fits.fuse}))


class Watches:
    """An installed plugin that registers nothing and watches every run."""

    def __init__(self):
        self.steps = 0

    @hookimpl
    def vitrail_step_end(self, step):
        self.steps += 1


def test_an_installed_plugin_may_watch_runs_and_need_not_register():
    watches = Watches()
    names = build_registry([entry("watch", lambda: watches), offers("one", "a", "soft")])
    assert names.observers == {"watch": watches}
    assert "watch, from somewhere 1.0\n  watches or wraps the stages of every run" in "\n".join(
        plugin_lines(names, 200)
    )


def test_an_installed_plugin_that_answers_a_stage_is_refused():
    answers = type("P", (), {"vitrail_patch": hookimpl(lambda self, step: None)})()
    with pytest.raises(RegistrationError, match="plugin 'mine' answers vitrail_patch, which plugin 'composition'"):
        refused([entry("mine", lambda: answers)])
