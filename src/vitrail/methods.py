"""Methods by name or file, with overrides; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitrail.core.composition import Composition
from vitrail.core.config import Loader
from vitrail.core.files import read_file
from vitrail.core.overrides import override
from vitrail.discovery import registry


def load_method(method: str | Path, assignments: Sequence[str] = ()) -> Composition:
    """Load a method.

    Args:
        method: A registered name such as ``asg``, or a TOML or YAML file.
        assignments: Overrides such as ``stages.0.guidance.0.scale=2``.

    Raises:
        ConfigError: Listing every problem with path and nearest name.
    """
    names = registry()
    is_file = isinstance(method, Path) or Path(method).suffix in (".toml", ".yaml", ".yml")
    path = Path(method).expanduser() if is_file else names.path("methods", str(method))
    where = str(path) if is_file else f"method {method!r}"
    return Loader(names).structure(override(read_file(path), list(assignments)), Composition, where)


def summary(path: Path) -> str:
    """The first comment of a method file: its name, paper and section."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)
