"""A plugin package: one guidance, two mask sources, one metric, one observer and one method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitrail import hookimpl
from vitrail_example.colourfulness import Colourfulness
from vitrail_example.guidance import ClampClean
from vitrail_example.masking import Center, PictureMask
from vitrail_example.probe import Probe

if TYPE_CHECKING:
    from vitrail.core.config.registry import Registry

__all__ = ["Center", "ClampClean", "Colourfulness", "PictureMask", "Probe", "vitrail_register"]


@hookimpl
def vitrail_register(registry: Registry) -> None:
    """Add everything that has a name in a config file; an observer has none, so ``--plugin`` or a sampler takes it."""
    registry.add("guidance", "clamp-clean", ClampClean)
    registry.add("masking", "center", Center)
    registry.add("masking", "picture", PictureMask)
    registry.add("metrics", "colourfulness", Colourfulness)
    registry.add_file("methods", "example-centered", Path(__file__).parent / "example-centered.toml")
