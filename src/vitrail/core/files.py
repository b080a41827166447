"""TOML and YAML files as nested tables; what is broken is shown with its line."""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from vitrail.errors import ConfigError

SUFFIXES = (".toml", ".yaml", ".yml")
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML or YAML file into nested tables.

    Raises:
        ConfigError: If it is not there, not TOML or YAML, empty or broken; with line and column where known.
    """
    path = path.expanduser()
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; a .toml, .yaml or .yml file is expected")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: a .toml, .yaml or .yml file is expected")
    try:
        data = path.read_bytes()
        if data[:2] in UTF16:
            raise ConfigError(f"{path}: is UTF-16 text; save it as UTF-8, e.g. in the editor's dialogue")
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text; byte {error.start} is {error.object[error.start]:#x}") from error
    table = _toml(path, text) if suffix == ".toml" else _yaml(path, text)
    if table is None or table == {}:
        raise ConfigError(f"{path}: is empty")
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: a table of keys is expected at the top, got a {type(table).__name__}")
    return table


def _toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).replace("Cannot overwrite a value", "a key is given twice").rpartition(" (at ")
        found = re.match(r"line (\d+), column (\d+)", place)
        end = len(text.splitlines()), 1
        raise _broken(path, text, problem, *(map(int, found.groups()) if found else end)) from error


def _yaml(path: Path, text: str) -> Any:
    try:
        return yaml.load(text, _StrictYaml)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = "; ".join(part for part in (error.problem, error.context) if part)
        raise _broken(path, text, problem, *((mark.line + 1, mark.column + 1) if mark else ())) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}, line {line}: character {text[error.position]!r} is not allowed") from error


def _broken(path: Path, text: str, problem: str, line: int = 0, column: int = 0) -> ConfigError:
    """The error with the offending line beneath it, if its number is known."""
    lines = text.splitlines()
    if not 0 < line <= len(lines):
        return ConfigError(f"{path}: {problem}")
    return ConfigError(f"{path}, line {line}, column {column}: {problem}\n  {lines[line - 1].strip()[:100]}")


class _StrictYaml(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, as TOML does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                name = self.construct_object(key, deep=True)
                if name in seen:
                    problem = f"key {name!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.append(name)
        return super().construct_mapping(node, deep=deep)
