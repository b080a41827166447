"""Keys of a method's stages that were renamed since the last version; both names are read for one version."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from vitrail.core.config.log import logger

RENAMED: Mapping[str, str] = {"also": "extra_views"}  # keys of [[stages]]: the former name to today's


def current_keys(method: Any, quiet: bool = False) -> Any:
    """A method's tables with today's keys.

    A stage that has a key under both names keeps both, so that the loader refuses it with all other problems; data that
    is no method stays as it is.

    Args:
        method: Tables as of a file, which are not changed.
        quiet: Whether nothing is logged, for data that no person wrote.
    """
    return _with_stages(method, lambda stage: _current(stage, quiet))


def former_keys(method: Any) -> Any:
    """A method's tables with the keys of before, for digests that stay what they were."""
    former = {now: then for then, now in RENAMED.items()}
    return _with_stages(method, lambda stage: {former.get(key, key): value for key, value in stage.items()})


def current_path(assignment: str, quiet: bool = False) -> str:
    """An assignment such as ``stages.1.also.0.weight=1``, or its path alone, with today's keys.

    Args:
        assignment: Of a value within a method's tables.
        quiet: As above.
    """
    path, sign, text = assignment.partition("=")
    parts = path.split(".")
    if len(parts) > 2 and parts[0].strip() == "stages" and (then := parts[2].strip()) in RENAMED:
        if not quiet:
            _warn(then)
        parts[2] = RENAMED[then]
    return ".".join(parts) + sign + text


def _with_stages(method: Any, change: Any) -> Any:
    stages = method.get("stages") if isinstance(method, Mapping) else None
    if not isinstance(stages, (list, tuple)):
        return method
    return {**method, "stages": [change(each) if isinstance(each, Mapping) else each for each in stages]}


def _current(stage: Mapping[str, Any], quiet: bool) -> dict[str, Any]:
    """A stage with today's keys."""
    old = {then: now for then, now in RENAMED.items() if then in stage and now not in stage}
    for then in () if quiet else old:
        _warn(then)
    return {old.get(key, key): value for key, value in stage.items()}


@functools.cache
def _warn(then: str) -> None:
    """One line a process and key."""
    logger().warning("method.key_renamed", key=then, now=RENAMED[then])
