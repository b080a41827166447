"""Experiment files in TOML or YAML: inheritance by ``extends``, expansion of short forms."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail.core.config.files import read_file
from vitrail.core.config.loader import loader_of
from vitrail.core.config.overrides import override
from vitrail.core.config.paths import beside, expanded
from vitrail.core.config.text_files import LARGEST_LIST, read_text
from vitrail.errors import ConfigError, shortened
from vitrail.experiments.spec.experiment import MOST_PAIRS, Experiment
from vitrail.sampling.discovery import registry
from vitrail.sampling.relative_paths import of_experiment

SHORT = {"methods": "method", "sizes": "size"}  # lists whose entries may be given as this field alone
MOST_BASES = 8  # maximum depth of ``extends``
MARKS = ("methods", "heatmaps", "extends")  # keys that identify an experiment's file; it has at least one


def load_experiment(path: Path, assignments: Sequence[str] = ()) -> tuple[Experiment, dict[str, Any]]:
    """Load an experiment, and its tables as a plan stores them.

    Args:
        path: TOML or YAML file; with ``extends = "other.toml"`` it overrides a file beside it.
        assignments: Overrides such as ``sizes.0.pictures=8``.

    Raises:
        ConfigError: Listing every problem with path and nearest name.
    """
    path = expanded(path)
    table = override(read_with_bases(path), list(assignments))
    return structure(table, str(path)), table


def structure(table: Mapping[str, Any], where: str) -> Experiment:
    """Build an experiment from tables.

    Args:
        table: The tables; short forms are expanded.
        where: Name of their source in error messages.

    Raises:
        ConfigError: Listing every problem with path and nearest name.
    """
    return loader_of(registry()).structure(spelt_out(table), Experiment, where)


def read_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file merged over the files that it extends, with short forms expanded; see ``merged``.

    Args:
        path: TOML or YAML file.
        seen: Resolved paths of the files that extend it, to detect cycles.

    Raises:
        ConfigError: If a file extends itself, more than ``MOST_BASES`` are nested, or one cannot be read.
    """
    read = read_file(path)
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself, by way of {' and '.join(str(each.name) for each in seen)}")
    if len(seen) == MOST_BASES:
        raise ConfigError(f"{path}: is the base of a base, and so on; {MOST_BASES} files may stand on each other")
    table = of_experiment(spelt_out(read), path.parent)
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(f"{path}: 'extends' is the name of a file beside it, got {shortened(repr(base))}")
    below = read_with_bases(path.parent / expanded(base), (*seen, path.resolve()))
    if isinstance(below.get("prompts_file"), str) and "prompts_file" not in table:
        below["prompts_file"] = beside(Path(base).parent, below["prompts_file"])
    return merged(below, table)


def merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested tables; values of ``above`` win, and one source of prompts replaces another.

    A table with a ``type`` replaces the one below instead of being merged.
    """
    result = copy.deepcopy(below)
    if len({"prompts", "prompts_file", "scenes"} & set(above)) == 1:
        result = {name: value for name, value in result.items() if name not in ("prompts", "prompts_file", "scenes")}
    for name, value in above.items():
        known = result.get(name)
        both = isinstance(known, dict) and isinstance(value, Mapping) and "type" not in value
        result[name] = merged(known, value) if both and isinstance(known, dict) else copy.deepcopy(value)
    return result


def spelt_out(table: Mapping[str, Any]) -> dict[str, Any]:
    """Expand the short forms ``methods = ["asg"]`` and ``sizes = [512]`` to lists of tables."""
    result = dict(table)
    for name, key in SHORT.items():
        if isinstance(result.get(name), list):
            result[name] = [_entry(key, item) for item in result[name]]
    return result


def _entry(key: str, item: Any) -> Any:
    if isinstance(item, Mapping):
        entry = dict(item)
        if isinstance(entry.get("size"), int) and not isinstance(entry["size"], bool):
            entry["size"] = str(entry["size"])
        return entry
    if isinstance(item, int) and not isinstance(item, bool) and key == "size":
        return {key: str(item)}
    return {key: item} if isinstance(item, str) else item


def prompts_of(experiment: Experiment, folder: Path) -> tuple[str, ...]:
    """Return the prompts in order; empty lines of a file and lines that begin with "#" are skipped.

    Args:
        experiment: Names the source of the prompts.
        folder: Folder of the experiment's file, for a relative ``prompts_file``.

    Raises:
        ConfigError: If a file of prompts cannot be read, has no prompts, or more than ``MOST_PAIRS``.
    """
    if experiment.prompts:
        return experiment.prompts
    if experiment.prompts_file is not None:
        return _read(folder / expanded(experiment.prompts_file))
    return tuple(scene(number)[1] for number in range(experiment.scenes))


def _read(path: Path) -> tuple[str, ...]:
    lines = read_text(path, LARGEST_LIST, where="prompts_file ").splitlines()
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if len(found) > MOST_PAIRS:
        raise ConfigError(f"prompts_file {path}: has {len(found)} prompts; {MOST_PAIRS} is the most")
    if not found:
        raise ConfigError(f"prompts_file {path}: has no prompt")
    return found


def scene(number: int) -> tuple[str, str]:
    """Return object and caption of the i-th of the demo model's scenes, which cycle through objects and backgrounds."""
    from vitrail.demo.backgrounds import BACKGROUNDS
    from vitrail.demo.scenes import OBJECTS

    name = OBJECTS[(5 * number) % len(OBJECTS)]
    place = list(BACKGROUNDS.values())[(3 * number) % len(BACKGROUNDS)]
    words = name.replace("-", " ")
    return name, f"{'an' if words[0] in 'aeiou' else 'a'} {words} {place.phrase}"
