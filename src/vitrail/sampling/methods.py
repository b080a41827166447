"""Methods by name or file, with overrides; does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vitrail.core.config.files import read_file
from vitrail.core.config.loader import loader_of
from vitrail.core.config.overrides import override_method
from vitrail.core.config.paths import expanded
from vitrail.core.config.text_files import read_text
from vitrail.core.method.composition import Composition
from vitrail.core.method.stage import Stage
from vitrail.core.method.validation import described
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry
from vitrail.sampling.relative_paths import of_method


def load_method(method: str | Path, assignments: Sequence[str] = ()) -> Composition:
    """Load a method by name or from a file.

    Args:
        method: A registered name such as ``asg``, or a TOML or YAML file, beside which relative paths in it lie.
        assignments: Overrides such as ``stages.0.guidance.0.scale=2``.

    Raises:
        ConfigError: Listing every problem with path and nearest name.
    """
    names = registry()
    is_file = isinstance(method, Path) or Path(method).suffix in (".toml", ".yaml", ".yml")
    path = expanded(method) if is_file else names.path("methods", str(method))
    where = str(path) if is_file else f"method {method!r}"
    tables = of_method(read_file(path), path.parent)
    return loader_of(names).structure(override_method(tables, list(assignments)), Composition, where)


def composition_of(method: object) -> Composition:
    """Return a method as a composition, in whichever form it is given.

    Args:
        method: A registered name, a TOML or YAML file, a table as in one, or a composition.

    Raises:
        ConfigError: Listing every problem with path and nearest name.
    """
    if isinstance(method, Composition):
        return method
    if isinstance(method, Mapping):
        return loader_of(registry()).structure(dict(method), Composition, "method={...}")
    if isinstance(method, (str, Path)):
        return load_method(method)
    hint = "; put its stages into one: Composition(stages=[...])" if isinstance(method, (Stage, list, tuple)) else ""
    raise ConfigError(f"method: expected a name, a file, a table or a Composition, got {described(method)}{hint}")


def summary(path: Path) -> str:
    """Return the first comment of a method file: its name, paper and section."""
    lines = []
    for line in read_text(path).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)
