"""Keys of runs and methods that came later; at their defaults they are left out of digests, so that these stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RUN: Mapping[str, Any] = {"eta": None, "step_kwargs": {}}
CASCADE: Mapping[str, Any] = {"rounding": "views", "sizes": []}
STAGE: Mapping[str, Any] = {"unscaled_start": False}
ENTER: Mapping[str, Any] = {"clip": "decoded"}
STRATEGIES: Mapping[str, Mapping[str, Any]] = {  # by name
    "attentive": {"until": 1.0, "decay": "above-zero"},
    "patch-content-aware": {"halvings": None},
    "windows": {"border": "stay"},
}


def without_added(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a run without those that came later and have their default."""
    return _without(run, RUN)


def method_without_added(method: Any) -> Any:
    """Return a method's tables without keys that came later and have their default; other data as it is."""
    stages = method.get("stages") if isinstance(method, Mapping) else None
    if not isinstance(method, Mapping) or not isinstance(stages, (list, tuple)):
        return method
    cascade = method.get("cascade")
    own = {"cascade": _without(cascade, CASCADE)} if isinstance(cascade, Mapping) else {}
    return {**method, **own, "stages": [_stage(each) if isinstance(each, Mapping) else each for each in stages]}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: _strategies(value) for key, value in _without(stage, STAGE).items()}
    enter = plain.get("enter")
    return plain | ({"enter": _without(enter, ENTER)} if isinstance(enter, Mapping) else {})


def _strategies(value: Any) -> Any:
    """Return a strategy's table, or whatever holds such tables, without later options at their defaults."""
    if isinstance(value, (list, tuple)):
        return [_strategies(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    inner = {key: _strategies(each) for key, each in value.items()}
    name = value.get("type")
    return _without(inner, STRATEGIES.get(name, {}) if isinstance(name, str) else {})


def _without(table: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    absent = object()
    return {key: value for key, value in table.items() if defaults.get(key, absent) != value}
