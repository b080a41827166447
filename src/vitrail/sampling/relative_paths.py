"""Paths read from files, resolved relative to the folder of the file.

On the command line, and in Python, relative paths refer to the working folder, as all paths do once resolved here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vitrail.backbones.loading.single_file import FAMILIES
from vitrail.core.config.files import SUFFIXES
from vitrail.core.config.overrides import assigned_value, inline_toml
from vitrail.core.config.paths import MODEL_FILE, beside, expanded
from vitrail.core.method.members import OPTIONAL
from vitrail.core.method.registration import fields_of, path_options
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry

MEASURING = {"metrics": "metrics", "reference": "references"}  # tables of an experiment, and what fills them
SLOT_OF = {**{slot: slot for slot in OPTIONAL}, "features": "features"}  # other keys whose tables are strategies
PLACE = "{value}"  # in an override of an axis, for each of its values


def of_run(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return options of a run with the paths of picture, method and model resolved.

    Args:
        table: Options as in the file.
        folder: Folder of the file.
    """
    found = dict(table) | {name: _of_option(name, value, folder) for name, value in table.items() if _says(value)}
    return found | ({"regions": _of_regions(found["regions"], folder)} if "regions" in found else {})


def _of_regions(regions: Any, folder: Path) -> Any:
    """Resolve the paths of regions' masks; what is no list of tables is left for the loader to refuse."""
    if not isinstance(regions, list):
        return regions
    return [
        each | {"mask": beside(folder, each["mask"])} if isinstance(each, dict) and _says(each.get("mask")) else each
        for each in regions
    ]


def of_experiment(table: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an experiment's tables with paths resolved; its file of prompts is left to ``prompts_of``."""
    found = dict(table)
    if _says(found.get("model")):
        found["model"] = _of_option("model", found["model"], folder)
    if isinstance(found.get("run"), Mapping):
        found["run"] = of_run(found["run"], folder)
    for name in ("methods", "axes", "heatmaps"):
        if isinstance(found.get(name), list):
            found[name] = [_of_entry(entry, folder) if isinstance(entry, Mapping) else entry for entry in found[name]]
    return found | {name: _of_slot(slot, found[name], folder) for name, slot in MEASURING.items() if name in found}


def of_method(value: Any, folder: Path) -> Any:
    """Return a method's tables with the paths of its strategies resolved, which their ``path_options`` name.

    Args:
        value: Tables, lists and scalars as in the file.
        folder: Folder of the file.
    """
    if isinstance(value, list):
        return [of_method(each, folder) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _of_slot(SLOT_OF[name], each, folder) if name in SLOT_OF else of_method(each, folder)
        for name, each in value.items()
    }


def _of_assignment(text: Any, folder: Path) -> Any:
    """Resolve the paths of strategies in an override such as ``finish.upscaler.file=x.pth``."""
    if not isinstance(text, str):
        return text
    path, sign, given = text.partition("=")
    if not sign or not any(slot in text for slot in SLOT_OF):
        return text
    parts, nested = [part.strip() for part in path.split(".")], assigned_value(given)
    for part in reversed(parts):
        nested = {part: nested}
    resolved = of_method(nested, folder)
    if resolved == nested:
        return text
    for part in parts:
        resolved = resolved[part]
    return f"{path}={inline_toml(resolved)}"


def _of_entry(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve the paths of a method, an axis, or a setting on one."""
    found, option = dict(entry), entry.get("option")
    values = found.get("values")
    if isinstance(found.get("set"), list) and (not isinstance(values, list) or any(map(_says, values))):
        resolved = [_of_assignment(each, folder) for each in found["set"]]
        if isinstance(values, list):  # put into the overrides, so they are the paths
            here = json.dumps(beside(folder, PLACE), ensure_ascii=False)
            if any(here in text for text in resolved if isinstance(text, str)):
                found["values"] = [beside(folder, value) if _says(value) else value for value in values]
        else:
            found["set"] = resolved
    if _says(found.get("method")):
        found["method"] = _of_option("method", found["method"], folder)
    if isinstance(found.get("run"), Mapping):
        found["run"] = of_run(found["run"], folder)
    if isinstance(option, str) and isinstance(found.get("values"), list):
        found["values"] = [_of_value(option, value, folder) for value in found["values"]]
    if isinstance(found.get("settings"), list):
        found["settings"] = [
            _of_entry(each, folder) if isinstance(each, Mapping) else each for each in found["settings"]
        ]
    return found


def _of_value(option: str, value: Any, folder: Path) -> Any:
    """Resolve the paths of a run option's value on an axis."""
    return of_run({option: value}, folder)[option]


def _of_slot(slot: str, value: Any, folder: Path) -> Any:
    """Resolve the paths of the strategies of a slot, and of those within them."""
    if isinstance(value, list):
        return [_of_slot(slot, each, folder) for each in value]
    if not isinstance(value, Mapping):
        return value
    if value and all(str(name).isdecimal() for name in value):  # places of a list, in an override
        return {name: _of_slot(slot, each, folder) for name, each in value.items()}
    paths = _paths_of(slot, value)
    return {
        name: beside(folder, each) if name in paths and _says(each) else each
        for name, each in of_method(value, folder).items()
    }


def _paths_of(slot: str, table: Mapping[str, Any]) -> Collection[str]:
    """Return the options of a strategy's table that are paths.

    An override need not name the strategy's type: then an option is a path if it is one wherever the slot knows it.

    Raises:
        ConfigError: If an option without a type is a path of some strategies of the slot and not of others.
    """
    names, kind = registry(), table.get("type")
    if kind is not None:
        return path_options(names.get(slot, kind)) if kind in names.names(slot) else ()
    found = []
    for option in (name for name, value in table.items() if _says(value)):
        having = [name for name in names.names(slot) if option in fields_of(names.get(slot, name))]
        naming = [name for name in having if option in path_options(names.get(slot, name))]
        if naming and len(naming) < len(having):
            raise ConfigError(
                f"{slot}: {option!r} is a path of {', '.join(naming)} and not of every {slot} that has it; override "
                f'the whole table, with its type: {slot}={{ type = "{naming[0]}", ... }}'
            )
        found += [option] * bool(naming)
    return found


def _of_option(name: str, value: str, folder: Path) -> str:
    return beside(folder, value) if _is_path(name, value, folder) else value


def _is_path(name: str, value: str, folder: Path) -> bool:
    match name:
        case "image":
            return True
        case "method":
            return Path(value).suffix.lower() in SUFFIXES
        case "model":
            return _is_found(value, folder, registry().names("models"))
        case "model_config":
            return _is_found(value, folder, FAMILIES)
    return False


def _is_found(value: str, folder: Path, names: Collection[str]) -> bool:
    """Whether a model's name is a path: it looks like one, or exists and is not a registered name."""
    if value in names:
        return False
    looks_so = value.startswith(("/", "./", "../", "~")) or value.endswith(MODEL_FILE)
    return looks_so or (folder / expanded(value)).exists()


def _says(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
