"""TOML and YAML files as nested tables; syntax errors are shown with their line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from vitrail.core.config.paths import expanded
from vitrail.core.config.plain_data import DEEPEST, check_plain
from vitrail.core.config.strict_yaml import StrictYaml
from vitrail.core.config.text_files import read_text
from vitrail.errors import ConfigError, shortened

SUFFIXES = (".toml", ".yaml", ".yml")
NAME = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
LONG_KEY = re.compile(rf"""(?<![\w"'-]){NAME}(?:\.[ \t]*{NAME}){{{DEEPEST}}}""")  # on which tomllib takes hours


def read_file(path: Path) -> dict[str, Any]:
    """Read a TOML or YAML file into nested tables.

    Raises:
        ConfigError: If it is missing, not TOML or YAML, empty, broken or out of bounds; with line and column where
            known.
    """
    path = expanded(path)
    where, suffix = shortened(str(path)), path.suffix.lower()
    if path.is_dir():
        raise ConfigError(f"{where}: is a folder; a .toml, .yaml or .yml file is expected")
    if suffix not in SUFFIXES:
        raise ConfigError(f"{where}: a .toml, .yaml or .yml file is expected")
    text = read_text(path)
    table = _toml(where, text) if suffix == ".toml" else _yaml(where, text)
    if table is None or table == {}:
        raise ConfigError(f"{where}: is empty")
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: a table of keys is expected at the top, got a {type(table).__name__}")
    check_plain(table, where)
    return table


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a text as TOML.

    Raises:
        tomllib.TOMLDecodeError: If it is not TOML.
        ConfigError: If it is out of bounds.
    """
    if found := LONG_KEY.search(text):
        raise ConfigError(f"{shortened(found[0], 60)}: a key has {DEEPEST} parts at most")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ConfigError(f"is more than {DEEPEST} tables and lists deep") from error
    except (ValueError, OverflowError) as error:  # from a number that Python does not accept
        raise ConfigError("a whole number has 64 bits at most") from error


def _toml(where: str, text: str) -> Any:
    try:
        return parse_toml(text)
    except tomllib.TOMLDecodeError as error:
        problem, _, place = str(error).replace("Cannot overwrite a value", "a key is given twice").rpartition(" (at ")
        found = re.match(r"line (\d+), column (\d+)", place)
        end = len(text.splitlines()), 1
        raise _broken(where, text, problem, *(map(int, found.groups()) if found else end)) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _yaml(where: str, text: str) -> Any:
    try:
        return yaml.load(text, StrictYaml)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = "; ".join(part for part in (error.problem, error.context) if part)
        raise _broken(where, text, problem, *((mark.line + 1, mark.column + 1) if mark else ())) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{where}, line {line}: character {text[error.position]!r} is not allowed") from error
    except (ValueError, OverflowError, RecursionError) as error:  # from escapes and directives
        raise ConfigError(f"{where}: cannot be read as YAML: {shortened(str(error))}") from error


def _broken(where: str, text: str, problem: str, line: int = 0, column: int = 0) -> ConfigError:
    """Return the error with the offending line below it, if its number is known."""
    lines, problem = text.splitlines(), shortened(problem)
    if not 0 < line <= len(lines):
        return ConfigError(f"{where}: {problem}")
    return ConfigError(f"{where}, line {line}, column {column}: {problem}\n  {lines[line - 1].strip()[:100]}")
