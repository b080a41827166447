"""What is checked: an instance of a class that registration takes, and contracts told as assertions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitrail.core.config.registry import Registry
from vitrail.errors import VitrailError


def instance_of(slot: str, strategy: Any) -> Any:
    """The strategy, after the checks that registration makes; a class is built with its defaults."""
    cls = strategy if isinstance(strategy, type) else type(strategy)
    Registry().add(slot, "under-test", cls)
    return strategy() if isinstance(strategy, type) else strategy


@contextmanager
def contract() -> Iterator[None]:
    """What the engine would refuse is a failed check."""
    try:
        yield
    except VitrailError as error:
        raise AssertionError(str(error)) from error
