"""Where the prompts of an experiment come from."""

from __future__ import annotations

from pathlib import Path

from vitrail.core.config.paths import expanded
from vitrail.core.config.text_files import LARGEST_LIST, read_text
from vitrail.errors import ConfigError
from vitrail.experiments.spec.experiment import MOST_PAIRS, Experiment


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
    """The object and the sentence of one of the demo model's scenes: objects in turn, backgrounds in another turn."""
    from vitrail.demo.backgrounds import BACKGROUNDS
    from vitrail.demo.scenes import OBJECTS

    name = OBJECTS[(5 * number) % len(OBJECTS)]
    place = list(BACKGROUNDS.values())[(3 * number) % len(BACKGROUNDS)]
    spoken = name.replace("-", " ")
    return name, f"{'an' if spoken[0] in 'aeiou' else 'a'} {spoken} {place.phrase}"
