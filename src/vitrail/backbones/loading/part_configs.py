"""Validation of a part's configuration before anything is built from it; light to import.

A network is built from its configuration before a weight is read: a size that its weights cannot fill would be noticed
only after hours, or when memory ran out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.core.config.text_files import read_json
from vitrail.errors import ModelError

LAYERS = "layers"  # substring of settings that count modules, each with at least one tensor
TIMESTEPS = "num_train_timesteps"  # setting of a scheduler, the length of its tables
MOST_TIMESTEPS = 100_000


def config_problems(file: Path, tensors: int | None = None) -> Iterator[str]:
    """Yield what is wrong with a configuration.

    Args:
        file: A JSON file.
        tensors: Number of tensors in the part's weights; None if it has no weights.
    """
    try:
        config = read_json(file, kind=ModelError)
    except ModelError as error:
        yield str(error)
        return
    if not isinstance(config, dict):
        yield f"{file} is no table of JSON"
        return
    for name, value in config.items():
        largest = max(_numbers(value), default=0)
        if name == TIMESTEPS and largest > MOST_TIMESTEPS:
            yield f"{file}: {name} is more than {MOST_TIMESTEPS}"
        if tensors is not None and LAYERS in name and largest > tensors:
            yield f"{file}: {name} says more layers than its weights have tensors, {tensors}"


def _numbers(value: Any) -> Iterator[float]:
    """Yield a number, or the numbers of a list."""
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)):
        yield value
