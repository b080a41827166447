"""Where pictures are written: one path each, refused before anything is computed if it cannot be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError


def output_paths(run: RunConfig, output: Path | None, force: bool) -> list[Path]:
    """One path a picture, none of which exists, unless forced."""
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: only .png files are written, since they can carry the recipe")
    slug = re.sub(r"[^a-z0-9]+", "-", run.prompt.lower()).strip("-")[:48] or "picture"
    base = output or Path(f"{slug}-{run.seed}.png")
    many = run.num_images > 1
    paths = [base.with_stem(f"{base.stem}-{i}") if many else base for i in range(run.num_images)]
    check_target(paths[-1], "--output")
    taken = [path for path in paths if path.exists() and not force]
    if taken and output is None:
        free = next(n for n in range(2, 10**6) if not any(p.with_stem(f"{p.stem}-{n}").exists() for p in paths))
        return [path.with_stem(f"{path.stem}-{free}") for path in paths]
    if taken:
        raise ConfigError(f"--output {taken[0]}: exists; give another name, or --force to overwrite it")
    return paths


def check_target(path: Path, option: str) -> None:
    """Refuse what cannot be a file's path, before anything is computed.

    Raises:
        ConfigError: Naming the option.
    """
    try:
        if not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist")
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{option} {path}: the folder {path.parent} cannot be written to")
        if path.is_dir() or not path.name:
            raise ConfigError(f"{option} {str(path)!r}: is a folder; name a file in it")
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 80 else f"{str(path)[:80]}..."
        raise ConfigError(f"{option} {shown!r}: cannot be a file: {error.args[-1]}") from error
