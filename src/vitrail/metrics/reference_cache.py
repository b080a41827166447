"""Cache for statistics of a reference set, which resampling compares with many times."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Remembered(Generic[T]):
    """Cache of a function of a tensor: computed once per tensor object, dropped when the tensor is freed.

    Tensors are compared by identity, so a cached tensor must not be modified.

    Args:
        compute: The function to cache.
    """

    def __init__(self, compute: Callable[[Tensor], T]):
        self._compute = compute
        self._known: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __call__(self, tensor: Tensor) -> T:
        """Return the function's value, computed at the first call with this tensor object."""
        key = id(tensor)
        known = self._known.get(key)
        if known is not None and known[0]() is tensor:
            return known[1]
        found = self._compute(tensor)
        self._known[key] = (weakref.ref(tensor, lambda gone: self._forget(key, gone)), found)
        return found

    def _forget(self, key: int, gone: weakref.ref[Tensor]) -> None:
        if key in self._known and self._known[key][0] is gone:
            del self._known[key]
