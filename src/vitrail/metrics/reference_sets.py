"""What metrics of sets share: the reference set that must be there, and torchmetrics that may be missing."""

from __future__ import annotations

import importlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vitrail.core.config.ambient import plain_defaults
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


def compared(reference: Tensor | None, metric: str) -> Tensor:
    """The reference set.

    Raises:
        ConfigError: If there is none.
    """
    if reference is None:
        raise ConfigError(
            f"metric {metric!r} compares with a set of true pictures: give a reference, e.g. 'demo-renders'"
        )
    return reference


def torchmetrics(module: str) -> Any:
    """A module of torchmetrics by its name below ``torchmetrics``.

    Raises:
        ConfigError: If torchmetrics is not installed.
    """
    try:
        return importlib.import_module(f"torchmetrics.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "torchmetrics":
            raise
        raise ConfigError(
            "FID, KID and inception score are computed by torchmetrics, which is not installed: "
            'pip install "vitrail[metrics]"'
        ) from error


def passing(num_features: int) -> Any:
    """A module that answers what it is given, for metrics of torchmetrics that would look at pictures."""
    import torch

    module = torch.nn.Identity()
    module.num_features = num_features  # type: ignore[assignment]
    return module


@contextmanager
def undisturbed() -> Iterator[None]:
    """Random numbers and types that are the same at every call and leave the process's own as they are; no warnings.

    torchmetrics shuffles by the process's random state, and warns that it keeps what it is given.
    """
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), plain_defaults():
        warnings.simplefilter("ignore")
        torch.set_rng_state(torch.Generator("cpu").manual_seed(0).get_state())
        yield


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
