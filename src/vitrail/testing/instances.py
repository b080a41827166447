"""Shared parts of contract checks: building an instance, and contract errors as assertions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vitrail.core.config.registry import Registry
from vitrail.errors import VitrailError


def instance_of(slot: str, strategy: Any) -> Any:
    """Return an instance, after the checks of registration in the slot; a class is built with its defaults.

    Raises:
        RegistrationError: If the class cannot be registered.
    """
    cls = strategy if isinstance(strategy, type) else type(strategy)
    Registry().add(slot, "under-test", cls)
    return strategy() if isinstance(strategy, type) else strategy


@contextmanager
def contract() -> Iterator[None]:
    """Turn a ``VitrailError`` of the block, as the engine's checks raise it, into an AssertionError.

    Raises:
        AssertionError: With the message of the error.
    """
    try:
        yield
    except VitrailError as error:
        raise AssertionError(str(error)) from error
