"""Sample large pictures from diffusion models that were trained on small ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitrail.core.hookspecs import hookimpl as hookimpl
from vitrail.errors import VitrailError as VitrailError

if TYPE_CHECKING:
    from vitrail.core.composition import Composition as Composition
    from vitrail.core.composition import Family as Family
    from vitrail.core.composition import Stage as Stage
    from vitrail.core.run_config import RunConfig as RunConfig
    from vitrail.methods import load_method as load_method
    from vitrail.result import Result as Result
    from vitrail.sampler import Sampler as Sampler

_HOMES = {
    "Composition": "vitrail.core.composition",
    "Family": "vitrail.core.composition",
    "Stage": "vitrail.core.composition",
    "RunConfig": "vitrail.core.run_config",
    "load_method": "vitrail.methods",
    "Result": "vitrail.result",
    "Sampler": "vitrail.sampler",
}
__all__ = ["VitrailError", "hookimpl", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
