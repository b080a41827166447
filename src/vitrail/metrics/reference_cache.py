"""What is computed of a reference set once, however often a set that is compared with it is drawn anew."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Remembered(Generic[T]):
    """A function of a tensor that is computed once for each tensor, and forgotten with it.

    Tensors are told apart by identity, so one that is remembered must not be written to.

    Args:
        compute: The function.
    """

    def __init__(self, compute: Callable[[Tensor], T]):
        self._compute = compute
        self._known: dict[int, tuple[weakref.ref[Tensor], T]] = {}

    def __call__(self, tensor: Tensor) -> T:
        """What the function gives of a tensor."""
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
