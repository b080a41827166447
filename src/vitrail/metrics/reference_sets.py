"""Requirements of metrics of sets: a reference set, and the optional dependency torchmetrics."""

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
    """Return the reference set if there is one.

    Raises:
        ConfigError: If it is None; the message names the metric.
    """
    if reference is None:
        raise ConfigError(
            f"metric {metric!r} compares with a set of true pictures: give a reference, e.g. 'demo-renders'"
        )
    return reference


def torchmetrics(module: str) -> Any:
    """Import and return the module ``torchmetrics.<module>``.

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
    """Return an identity module, as the feature network of torchmetrics' metrics when features are already computed."""
    import torch

    module = torch.nn.Identity()
    module.num_features = num_features  # type: ignore[assignment]
    return module


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run a block with fixed random state and default dtype, without warnings, and restore the process's state.

    torchmetrics shuffles with the process's random state, and warns about the memory that its buffers take.
    """
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), plain_defaults():
        warnings.simplefilter("ignore")
        torch.set_rng_state(torch.Generator("cpu").manual_seed(0).get_state())
        yield


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
