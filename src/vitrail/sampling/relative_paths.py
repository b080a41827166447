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
from vitrail.sampling.discovery import registry

MEASURING = ("metrics", "reference")  # tables of an experiment with strategies that read files
OF_STRATEGIES = ("folder", "path", "weights")  # keys of their tables
OF_UPSCALERS = ("file", *OF_STRATEGIES)
PLACE = "{value}"  # in an override of an axis, for each of its values
UPSCALER = "upscaler"  # key of the one strategy of a method whose relative paths lie beside the method's file


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
    for name in ("methods", "axes"):
        if isinstance(found.get(name), list):
            found[name] = [_of_entry(entry, folder) if isinstance(entry, Mapping) else entry for entry in found[name]]
    return found | {name: _of_strategy(found[name], folder) for name in MEASURING if name in found}


def of_method(value: Any, folder: Path) -> Any:
    """Return a method's tables with the paths of its upscalers resolved.

    Args:
        value: Tables, lists and scalars as in the file.
        folder: Folder of the file.
    """
    if isinstance(value, list):
        return [of_method(each, folder) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _of_strategy(each, folder, OF_UPSCALERS) if name == UPSCALER else of_method(each, folder)
        for name, each in value.items()
    }


def _of_assignment(text: Any, folder: Path) -> Any:
    """Resolve the paths of an upscaler in an override such as ``finish.upscaler.file=x.pth``."""
    if not isinstance(text, str):
        return text
    path, sign, given = text.partition("=")
    if not sign or UPSCALER not in text:
        return text
    parts, nested = [part.strip() for part in path.split(".")], assigned_value(given)
    for part in reversed(parts):
        nested = {part: nested}
    resolved = of_method(nested, folder)
    for part in parts:
        resolved = resolved[part]
    return f"{path}={inline_toml(resolved)}"


def _of_entry(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve the paths of a method, an axis, or a setting on one."""
    found, option = dict(entry), entry.get("option")
    if isinstance(found.get("set"), list):
        resolved = [_of_assignment(each, folder) for each in found["set"]]
        if isinstance(found.get("values"), list):  # put into the overrides, so they are the paths
            here = json.dumps(beside(folder, PLACE), ensure_ascii=False)
            if any(here in text for text in resolved if isinstance(text, str)):
                found["values"] = [beside(folder, value) if _says(value) else value for value in found["values"]]
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


def _of_strategy(value: Any, folder: Path, names: Collection[str] = OF_STRATEGIES) -> Any:
    """Resolve the paths of strategies, which some names of keys mark, at any depth."""
    if isinstance(value, list):
        return [_of_strategy(each, folder, names) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {
        name: beside(folder, each) if name in names and _says(each) else _of_strategy(each, folder, names)
        for name, each in value.items()
    }


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
