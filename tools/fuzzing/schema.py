"""Strategies of tables, from the classes that read them: every field by its type, every slot by its registrations.

New fields and registrations are drawn without changes here. Tables are nearly valid: types are right, ranges mostly.
"""

import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs
from hypothesis import strategies as st

from vitrail.core.config.loader import SLOTS
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.experiments.spec.experiment import Experiment
from vitrail.sampling.discovery import registry

SETS = (
    "stages.0.until=0.5",
    "stages.0.patching=whole",
    "stages.0.guidance=[]",
    "stages.0.fusion.type=gaussian",
    "stages.0.masking=none",
    "stages.0.patching.size=8",
)
KNOWN = {  # meaningful values by the field's name
    "method": ("direct", "multidiffusion", "asg-plus", "asg", "demofusion", "mine.toml", "mine.yaml", "no-method"),
    "model": ("demo", "demo", "demo", "./demo", "org/name", "no-model"),
    "size": ("64", "96", "128x64", "2x", "1x2x", "0.5x", "64x1000000", "32768", "99999"),
    "prompts": ("a fox", "a rocket on a beach"),
    "scheduler": ("DDIMScheduler", "EulerDiscreteScheduler", "UnCLIPScheduler", "DDIMInverseScheduler", "No"),
    "comm": ("gloo", "in-process", "simulated", "tcp"),
    "masking": ("attention", "up-block-attention", "none", "pfsa", "joint-attention"),
    "plugins": ("os:path", "no_module:X"),
    "extends": ("base.toml", "e.toml"),
    "prompts_file": ("prompts.txt", "no.txt", "/dev/zero"),
    "image": ("picture.png", "no.png", "~/picture.png"),
    "mask": ("picture.png", "no.png"),
    "option": ("guidance_scale", "num_inference_steps", "image", "seed", "dtype"),
    "set": SETS,
    "at": ("0.5,1.0", "0", "nan", ""),
}
BOXES = ([], [0.0, 0.25, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.25, 1.0], [0.0, 0.0, 0.001, 0.001], [0.0, 0.0])
SMALL = {  # numbers that keep most plans small
    "height": st.integers(64, 160),
    "width": st.integers(64, 160),
    "num_inference_steps": st.integers(1, 6),
    "num_images": st.integers(1, 3),
    "repeats": st.integers(1, 3),
    "scenes": st.integers(1, 4),
    "resamples": st.integers(0, 20),
    "guidance_scale": st.sampled_from([1.0, 3.0, 7.5]),
    "ranks": st.sampled_from([1, 2]),
}
whole = st.integers(0, 4) | st.integers(-3, 70) | st.sampled_from([10**6, 2**40])
real = st.floats(0, 1) | st.floats(0, 10) | st.sampled_from([-1.0, 1e9])
texts = st.sampled_from(["a fox", "x", "direct", "none", ""])


def tables(cls: type, always: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of tables of a class: required fields, fields in ``always``, and some of the others."""
    attrs.resolve_types(cls)
    fields = {field.name: field for field in attrs.fields(cls) if field.init}
    due = {name for name, field in fields.items() if field.default is attrs.NOTHING} | set(always) | _due(cls)
    return st.fixed_dictionaries(
        {name: _of_field(field) for name, field in fields.items() if name in due},
        optional={name: _of_field(field) for name, field in fields.items() if name not in due},
    ).map(lambda table: {name: value for name, value in table.items() if value is not None})


def _due(cls: type) -> set[str]:
    return {"masking"} if cls.__name__ == "Stage" else set()


def _of_field(field: attrs.Attribute) -> st.SearchStrategy[Any]:
    if field.name == "box":
        return st.sampled_from(BOXES)
    if field.name in SMALL:
        return _as(field.type, SMALL[field.name])
    if field.name in KNOWN and "str" in str(field.type):
        return _as(field.type, st.sampled_from(KNOWN[field.name]))
    return values_of(field.type)


def _as(kind: Any, single: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(single, min_size=1, max_size=3, unique=True) if typing.get_origin(kind) is tuple else single


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy of values of a field's type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind in SLOTS:
        return st.deferred(lambda: strategies(SLOTS[kind]))
    if isinstance(kind, type) and attrs.has(kind):
        return st.deferred(lambda: tables(kind))
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        return st.lists(values_of(parts[0]), max_size=3)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if part is type(None) else values_of(part) for part in parts])
    if origin in (dict, Mapping):
        return st.deferred(lambda: st.fixed_dictionaries({}, optional=_options()))
    simple = {bool: st.booleans(), int: whole, float: real, str: texts, type(None): st.none()}
    return simple.get(kind, st.one_of(whole, real, texts))


def _options() -> dict[str, st.SearchStrategy[Any]]:
    """Return strategies of the run options of experiments by name."""
    attrs.resolve_types(RunConfig)
    names = ("num_inference_steps", "guidance_scale", "wrap", "scheduler", "image", "negative_prompt", "memory")
    return {field.name: _of_field(field) for field in attrs.fields(RunConfig) if field.name in names}


def strategies(slot: str) -> st.SearchStrategy[Any]:
    """Return a strategy of a slot's registrations: a name, or a table with options."""
    entries = {entry.name: entry.value for entry in registry().entries(slot)}
    named = [
        tables(cls).map(lambda table, name=name: {"type": name, **table})
        for name, cls in entries.items()
        if attrs.has(cls)
    ]
    return st.sampled_from(sorted(entries)) | st.one_of(named)


def runs() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of tables of runs, some with ``size`` instead of height and width."""
    sized = st.sampled_from(KNOWN["size"])
    plain = tables(RunConfig)
    without = plain.map(lambda table: {name: value for name, value in table.items() if name not in ("height", "width")})
    return plain | st.builds(lambda table, size: {**table, "size": size}, without, sized)


def methods() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of tables of methods; in most the last stage has no ``until``."""

    def ended(table: dict[str, Any]) -> dict[str, Any]:
        for stage in table["stages"][-1:]:
            stage.pop("until", None)
        return table

    return tables(Composition).map(ended) | tables(Composition)


def experiments() -> st.SearchStrategy[dict[str, Any]]:
    """Return a strategy of tables of experiments; most have one source of prompts."""

    def with_one(table: dict[str, Any], source: str) -> dict[str, Any]:
        sources = {"prompts": ["a fox"], "scenes": 2, "prompts_file": "prompts.txt"}
        rest = {name: value for name, value in table.items() if name not in sources and name != "heatmaps"}
        return {**rest, source: table.get(source) or sources[source]}

    drawn = tables(Experiment, always=("methods", "sizes"))
    return st.builds(with_one, drawn, st.sampled_from(["prompts", "scenes", "prompts_file"])) | drawn
