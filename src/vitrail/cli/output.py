"""Paths of output files, checked before anything is computed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError


def output_paths(run: RunConfig, output: Path | None, force: bool) -> list[Path]:
    """Return one path per picture.

    Args:
        run: Gives the number of pictures, and prompt and seed for the default name.
        output: PNG file; None for a name after prompt and seed, numbered so that no existing file is overwritten.
        force: Allow existing files.

    Raises:
        ConfigError: If ``output`` is not a PNG file, exists without ``force``, or cannot be written.
    """
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
    """Check that a file can be written at a path.

    Args:
        path: The path.
        option: Name of the command-line option in error messages.

    Raises:
        ConfigError: If the path is invalid or a folder, or its folder is missing or not writable.
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
