"""Bounds for data from files and options, so that few bytes cannot expand to gigabytes or hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vitrail.errors import ConfigError, shortened

MOST_VALUES = 20_000  # tables, lists and scalars of a file; an alias counts at each use
DEEPEST = 32  # nesting of tables and lists
LARGEST_WHOLE = 2**63  # bound of whole numbers, as in TOML


def check_plain(data: object, where: str) -> None:
    """Refuse data that is too deep, too large, or has whole numbers of more than 64 bits.

    Args:
        data: Nested tables, lists and scalars; shared parts count at each use.
        where: Beginning of the error.

    Raises:
        ConfigError: Naming the first value found out of bounds.
    """
    left: list[tuple[object, tuple[object, ...]]] = [(data, ())]
    count = 0
    while left:
        value, path = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise ConfigError(f"{where}: has more than {MOST_VALUES} values; long lists belong in files of their own")
        if len(path) > DEEPEST:
            raise ConfigError(f"{where}: {_path_text(path)}: is more than {DEEPEST} tables and lists deep")
        if isinstance(value, int) and not -LARGEST_WHOLE <= value < LARGEST_WHOLE:
            raise ConfigError(f"{where}: {_path_text(path)}: a whole number has 64 bits at most")
        left += [(part, (*path, key)) for key, part in _parts(value)]


def _parts(value: object) -> Iterator[tuple[Any, object]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _path_text(path: tuple[object, ...]) -> str:
    """Write a path as the loader's errors do."""
    steps = (f"[{key}]" if isinstance(key, int) else f".{shortened(str(key), 40)}" for key in path)
    return shortened("$" + "".join(steps))
