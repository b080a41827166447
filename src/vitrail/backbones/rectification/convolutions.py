"""3x3 convolutions of a U-Net, and their dilation without changing the layer.

The taps of a convolution with dilation d are d cells apart, so the cells that are d apart form a picture of their own,
to which the plain convolution is applied. Only inputs and outputs change: whatever the layer consists of (LoRA,
quantised or offloaded weights) still applies, and nothing is computed that is not used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from vitrail.backbones.rectification.module_hooks import Hook
from vitrail.backbones.rectification.scope import blocks, present
from vitrail.core.config.log import logger

if TYPE_CHECKING:
    from torch import Tensor

OUTER = ("conv_in", "conv_out")  # not in any block


@frozen(eq=False)
class Convolution:
    """A 3x3 convolution with zero padding of 1.

    Attributes:
        name: Dotted name in the network.
        module: The layer, or an adapter's wrapper of it.
        stride: 2 where features are halved.
        halvings: Number of downsamplers before its block.
    """

    name: str
    module: Any
    stride: int
    halvings: int


def convolutions(network: Any, also: Sequence[str] = ()) -> dict[str, Convolution]:
    """Return all such convolutions in residual blocks, downsamplers and upsamplers, by name.

    Args:
        network: A U-Net.
        also: Names of further ones outside the blocks.
    """
    found = [(name, getattr(network, name), 0) for name in also]
    for block in blocks(network):
        for part in ("resnets", "downsamplers", "upsamplers"):
            for i, module in enumerate(getattr(block.module, part, None) or ()):
                layers = ((each, getattr(module, each, None)) for each in ("conv1", "conv2", "conv"))
                found += [(f"{block.name}.{part}.{i}.{each}", layer, block.halvings) for each, layer in layers]
    return {name: Convolution(name, layer, _stride(layer), level) for name, layer, level in found if _fits(layer)}


def tell_missing(network: Any, places: Iterable[str], sites: Sequence[str]) -> None:
    """Warn of sites that select none of a network's places, and so are left out."""
    there = present(places, sites)
    missing = [site for site in sites if site not in there]
    if missing:
        logger().warning("rectification.left_out", sites=missing, network=type(network).__name__)


def dilated(conv: Convolution, dilation: float) -> Hook:
    """Return a hook that dilates a convolution.

    ScaleCrafter (He et al., 2023, https://arxiv.org/abs/2310.07702), sec. 3. The output is as large
    as the plain one's.

    Args:
        conv: The convolution.
        dilation: 1 or more; for fractions the features are resized before and after.
    """
    holes, sides, grown = math.ceil(dilation), list[int](), list[int]()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        sides[:] = args[0].shape[-2:]
        grown[:] = [max(1, round(side * holes / dilation)) for side in sides]
        return (spread(resized(args[0], grown), holes, conv.stride), *args[1:]), kwargs

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        whole = collected(output, holes, conv.stride, [math.ceil(side / conv.stride) for side in grown])
        return resized(whole, [math.ceil(side / conv.stride) for side in sides])

    return Hook(conv.name, conv.module, before, after)


def spread(features: Tensor, dilation: int, stride: int = 1) -> Tensor:
    """Return the pictures of cells that are ``dilation`` apart, one for each phase of the output.

    With a stride the picture of a phase may begin before the features do; it then starts with a stride of padding,
    whose output ``collected`` drops.

    Args:
        features: Float[Tensor, "batch channels h w"].
        dilation: Distance of the taps.
        stride: Stride of the convolution.

    Returns:
        Float[Tensor, "dilation*dilation*batch channels u v"], for a plain convolution of that stride.
    """
    import torch
    import torch.nn.functional as F

    lead = dilation * stride if stride > 1 else 0
    counts = [math.ceil(math.ceil(side / stride) / dilation) for side in features.shape[-2:]]
    lengths = [stride * count + 2 if stride > 1 else count for count in counts]
    reach = [dilation * (length - 1) + 1 for length in lengths]
    (down, right), (height, width) = ([r + stride * (dilation - 1) - lead for r in reach], features.shape[-2:])
    padded = F.pad(features, (lead, right - width, lead, down - height))
    offsets = range(0, stride * dilation, stride)
    return torch.cat(
        [padded[..., y : y + reach[0] : dilation, x : x + reach[1] : dilation] for y in offsets for x in offsets]
    )


def collected(answers: Tensor, dilation: int, stride: int, sides: Sequence[int]) -> Tensor:
    """Return the output of the dilated convolution from those of its phases.

    Args:
        answers: Float[Tensor, "dilation*dilation*batch channels u v"].
        dilation: Distance of the taps.
        stride: Stride of the convolution.
        sides: Height and width of the output.

    Returns:
        Float[Tensor, "batch channels h w"].
    """
    lead = int(stride > 1)
    found = answers[..., lead:, lead:]
    phases = found.reshape(dilation, dilation, -1, *found.shape[1:])
    whole: Tensor = phases.permute(2, 3, 4, 0, 5, 1).flatten(4).flatten(2, 3)
    return whole[..., : sides[0], : sides[1]]


def resized(features: Tensor, sides: Sequence[int]) -> Tensor:
    """Resize features bilinearly; bit-identical if they have the size already."""
    import torch.nn.functional as F

    if tuple(features.shape[-2:]) == tuple(sides):
        return features
    return F.interpolate(features, size=tuple(sides), mode="bilinear")


def _fits(layer: Any) -> bool:
    from torch.nn import Conv2d

    conv = getattr(layer, "base_layer", layer)  # the layer inside an adapter's wrapper
    return (
        isinstance(conv, Conv2d)
        and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and conv.stride[0] == conv.stride[1]
        and conv.padding_mode == "zeros"
    )


def _stride(layer: Any) -> int:
    stride: int = getattr(layer, "base_layer", layer).stride[0]
    return stride
