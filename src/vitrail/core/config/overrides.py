"""Assignments such as ``stages.0.guidance.0.scale=2``, applied to nested tables."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Sequence
from typing import Any

from vitrail.core.config.files import parse_toml
from vitrail.core.config.plain_data import DEEPEST, check_plain
from vitrail.core.config.renamed_keys import current_keys, current_path
from vitrail.errors import ConfigError, nearest, shortened

LONGEST = 2**16  # characters of an assignment
LONGEST_INDEX = 6  # digits


def override(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply assignments ``path.to.key=value`` to a copy; a value is TOML, or else plain text.

    Raises:
        ConfigError: Naming every assignment whose path does not exist, or if the result is out of bounds.
    """
    result, problems = copy.deepcopy(data), []
    for assignment in assignments:
        try:
            _assign(result, assignment)
        except ConfigError as error:
            problems.append(f"--set {shortened(assignment)!r}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    check_plain(result, "with --set")
    return result


def override_method(method: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """As ``override``, for a method's tables; keys and paths may have their names of the last version."""
    return override(current_keys(method), [current_path(each) for each in assignments])


def _assign(data: dict[str, Any], assignment: str) -> None:
    path, sign, text = assignment.partition("=")
    parts = [part.strip() for part in path.split(".")]
    if not sign or not all(parts):
        raise ConfigError("write path=value, e.g. stages.0.guidance.0.scale=2")
    if len(parts) > DEEPEST or len(assignment) > LONGEST:
        raise ConfigError(f"a path has {DEEPEST} parts at most, and an assignment {LONGEST} characters")
    target: Any = data
    for depth in range(len(parts) - 1):
        target = _descend(target, parts, depth)
    key = _key(target, parts, len(parts) - 1)
    target[key] = assigned_value(text)


def _descend(target: Any, parts: list[str], depth: int) -> Any:
    """Return the table or list one part down; a strategy's short form becomes a table on the way."""
    key = _key(target, parts, depth)
    if isinstance(target, dict) and key not in target:
        here = ".".join(parts[: depth + 1])
        raise ConfigError(f"there is no {here}{nearest(str(key), map(str, target))}; to add it, set {here} itself")
    if isinstance(target[key], str):
        target[key] = {"type": target[key]}
    return target[key]


def _key(target: Any, parts: list[str], depth: int) -> str | int:
    """Return a part of the path as a key of a table, or as an existing index of a list."""
    part, parent = parts[depth], ".".join(parts[:depth])
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise ConfigError(f"{parent} is {shortened(repr(target))}, which has no parts")
    if not part.isdecimal() or len(part) > LONGEST_INDEX or int(part) >= len(target):
        raise ConfigError(
            f"{parent} is a list of {len(target)}, counted from 0; got {part!r}. "
            f"To make it longer, set it as a whole: {parent}=[...]"
        )
    return int(part)


def assigned_value(text: str) -> Any:
    """Return what an assignment's right side means: TOML, or else plain text."""
    try:
        parsed = parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


def inline_toml(value: object) -> str:
    """Return plain data as one line of TOML, which ``assigned_value`` reads back."""
    if isinstance(value, dict):
        entries = (f"{json.dumps(key, ensure_ascii=False)} = {inline_toml(each)}" for key, each in value.items())
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline_toml, value)) + "]"
    return str(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
