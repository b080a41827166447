"""The built-in strategies, registered as any plugin registers."""

from __future__ import annotations

from pathlib import Path

from vitrail.core.hookspecs import hookimpl
from vitrail.core.registry import Registry
from vitrail.plugins.fusion import Average, Broadcast, Gaussian, Scatter
from vitrail.plugins.guidance import AsyncGuidance, NoGuidance, SyncGuidance
from vitrail.plugins.masking import JointAttention, NoMask, ParameterFreeAttention, UpBlockAttention
from vitrail.plugins.patching import Lattice, Whole, Windows

METHODS = Path(__file__).parent / "methods"


@hookimpl
def vitrail_register(registry: Registry) -> None:
    """Add the built-ins."""
    registry.add("patching", "whole", Whole)
    registry.add("patching", "windows", Windows)
    registry.add("patching", "lattice", Lattice)
    registry.add("guidance", "none", NoGuidance)
    registry.add("guidance", "sync", SyncGuidance)
    registry.add("guidance", "async", AsyncGuidance)
    registry.add("masking", "none", NoMask)
    registry.add("masking", "up-block-attention", UpBlockAttention)
    registry.add("masking", "joint-attention", JointAttention)
    registry.add("masking", "pfsa", ParameterFreeAttention)
    registry.add("fusion", "average", Average)
    registry.add("fusion", "gaussian", Gaussian)
    registry.add("fusion", "scatter", Scatter)
    registry.add("fusion", "broadcast", Broadcast)
    for path in sorted(METHODS.glob("*.toml")):
        registry.add_file("methods", path.stem, path)
