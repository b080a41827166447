"""Detection of networks with active dropout, which are still in training mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vitrail.errors import CapabilityError, Problems

LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_dropout(components: Mapping[str, Any]) -> None:
    """Refuse parts of a pipeline with active dropout, since each call and each rank would make another picture.

    Args:
        components: Components of a diffusers pipeline, by name.

    Raises:
        CapabilityError: Listing every such part, and what to do.
    """
    problems = Problems()
    for name, part in components.items():
        layer = next(_dropping(part), None) if isinstance(part, nn.Module) else None
        with problems.collect():
            if layer is not None:
                raise CapabilityError(
                    f"{name} is in training mode and drops values at random in {layer!r}, so that no picture could be "
                    f"made twice: call pipe.{name}.eval()"
                )
    problems.tell()


def _dropping(part: nn.Module) -> Iterator[str]:
    """Yield the names of layers with active dropout."""
    layers = ((name, each) for name, each in part.named_modules() if isinstance(each, LAYERS))
    return (name for name, layer in layers if layer.training and layer.p > 0)
