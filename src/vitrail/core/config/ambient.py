"""Isolation of libraries from the process's default dtype and default device.

The package names both wherever it makes a tensor. Third-party schedulers, networks, tokenizers and VAEs do not always:
a default dtype of float64 would change their numbers, and a default device would separate their tensors from their
weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LOCK = threading.Lock()
_inside = 0  # running calls, of all threads
_found: torch.dtype | None = None  # default dtype before the first of them


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Make float32 and the CPU the defaults during a call; usable as a context or a decorator.

    torch keeps the default dtype per process, so other threads see float32 meanwhile if another dtype is set; the
    default device is per thread.
    """
    import torch

    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        _begin()
        stack.callback(_end)
        yield


def _begin() -> None:
    import torch

    global _inside, _found
    with _LOCK:
        if not _inside:
            _found = torch.get_default_dtype()
            _set(torch.float32)
        _inside += 1


def _end() -> None:
    global _inside
    with _LOCK:
        _inside -= 1
        if not _inside and _found is not None:
            _set(_found)


def _set(dtype: torch.dtype) -> None:
    import torch

    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
