"""Models behind one protocol; the only package that imports diffusers and transformers, and not on import."""

from __future__ import annotations

from pathlib import Path

from vitrail.backbones.adapters import ADAPTERS
from vitrail.backbones.rectification.attention_scale import AttentionScale
from vitrail.backbones.rectification.dilated_convolution import DilatedConvolution
from vitrail.backbones.rectification.filtered_convolution import FilteredConvolution
from vitrail.backbones.rectification.freeu import FreeU
from vitrail.backbones.rectification.raunet import RAUNet
from vitrail.backbones.rectification.window_attention import WindowAttention
from vitrail.core.config.registry import Registry
from vitrail.core.method.hookspecs import hookimpl

DEMO = Path(__file__).parent.parent / "demo" / "model"


@hookimpl
def vitrail_register(registry: Registry) -> None:
    """Register the adapters, the rectifications and the demo model."""
    for name, adapter in ADAPTERS.items():
        registry.add("backbones", name, adapter)
    registry.add("rectification", "attention-scale", AttentionScale)
    registry.add("rectification", "freeu", FreeU)
    registry.add("rectification", "dilated-convolution", DilatedConvolution)
    registry.add("rectification", "filtered-convolution", FilteredConvolution)
    registry.add("rectification", "raunet", RAUNet)
    registry.add("rectification", "window-attention", WindowAttention)
    registry.add_file("models", "demo", DEMO)
