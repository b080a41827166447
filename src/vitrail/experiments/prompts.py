"""Where the prompts of an experiment come from."""

from __future__ import annotations

from pathlib import Path

from vitrail.errors import ConfigError
from vitrail.experiments.experiment import Experiment


def prompts_of(experiment: Experiment, folder: Path) -> tuple[str, ...]:
    """The sentences, in order.

    Args:
        experiment: Says which.
        folder: Where its file lies.

    Raises:
        ConfigError: If a file of prompts cannot be read or has none.
    """
    if experiment.prompts:
        return experiment.prompts
    if experiment.prompts_file is not None:
        return _read(folder / Path(experiment.prompts_file).expanduser())
    return tuple(scene(number)[1] for number in range(experiment.scenes))


def _read(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts_file {path}: cannot be read as text: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        raise ConfigError(f"prompts_file {path}: has no prompt")
    return found


def scene(number: int) -> tuple[str, str]:
    """The object and the sentence of one of the demo model's scenes: objects in turn, backgrounds in another turn."""
    from vitrail.backbones.demo.backgrounds import BACKGROUNDS
    from vitrail.backbones.demo.scenes import OBJECTS

    name = OBJECTS[(5 * number) % len(OBJECTS)]
    place = list(BACKGROUNDS.values())[(3 * number) % len(BACKGROUNDS)]
    spoken = name.replace("-", " ")
    return name, f"{'an' if spoken[0] in 'aeiou' else 'a'} {spoken} {place.phrase}"
