"""What metrics of sets share: the reference set that must be there, and torchmetrics that may be missing."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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
