"""Prompts of an experiment: given texts, a file, or the demo model's scenes."""

from __future__ import annotations

from pathlib import Path

from vitrail.core.config.paths import expanded
from vitrail.core.config.text_files import LARGEST_LIST, read_text
from vitrail.errors import ConfigError
from vitrail.experiments.spec.experiment import MOST_PAIRS, Experiment


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
    spoken = name.replace("-", " ")
    return name, f"{'an' if spoken[0] in 'aeiou' else 'a'} {spoken} {place.phrase}"
