"""Sample large pictures from diffusion models that were trained on small ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitrail.core.method.hookspecs import hookimpl as hookimpl
from vitrail.errors import VitrailError as VitrailError

if TYPE_CHECKING:
    __version__: str
    from vitrail.core.config.region import Region as Region
    from vitrail.core.config.run_config import RunConfig as RunConfig
    from vitrail.core.method.composition import Composition as Composition
    from vitrail.core.method.stage import Stage as Stage
    from vitrail.core.method.stage import ViewGroup as ViewGroup
    from vitrail.sampling.methods import load_method as load_method
    from vitrail.sampling.modular import block_of as block_of
    from vitrail.sampling.result import Result as Result
    from vitrail.sampling.sampler import Sampler as Sampler

_HOMES = {
    "Composition": "vitrail.core.method.composition",
    "ViewGroup": "vitrail.core.method.stage",
    "Stage": "vitrail.core.method.stage",
    "Region": "vitrail.core.config.region",
    "RunConfig": "vitrail.core.config.run_config",
    "block_of": "vitrail.sampling.modular",
    "load_method": "vitrail.sampling.methods",
    "Result": "vitrail.sampling.result",
    "Sampler": "vitrail.sampling.sampler",
}
__all__ = ["VitrailError", "hookimpl", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for; the version is that of the installed distribution."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("vitrail")
    if name not in _HOMES:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
