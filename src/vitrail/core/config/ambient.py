"""What the process has set for tensors that name no type and no device, kept away from libraries.

The package names both wherever it makes a tensor. Schedulers, networks, tokenizers and VAEs of others do not always: a
default type of float64 would give them other numbers, and a default device would part their tensors from their weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LOCK = threading.Lock()
_inside = 0  # calls of all threads that are in work
_found: torch.dtype | None = None  # what the first of them found


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Float32 and the CPU for what names no type and no device, for the time of a call; also a decorator.

    torch keeps the default type for the whole process, so other threads see float32 for that time, if another type is
    set; the default device is this thread's own.
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
