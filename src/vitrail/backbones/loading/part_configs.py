"""The configuration of a model's part, judged before anything is built from it; imports nothing heavy.

A network is built as large as its configuration says, before a weight is read: numbers that its weights cannot fill
would take hours and all memory to find out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.core.config.text_files import read_json
from vitrail.errors import ModelError

LAYERS = "layers"  # in the names of numbers that say how many modules there are, each with a tensor or more
TIMESTEPS = "num_train_timesteps"  # of a schedule, which is computed at that length
MOST_TIMESTEPS = 100_000


def config_problems(file: Path, tensors: int | None = None) -> Iterator[str]:
    """What is wrong with a configuration.

    Args:
        file: JSON.
        tensors: That the part's weights hold; None if it has none.
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
    """A number, or those of a list."""
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, (int, float)):
        yield value
