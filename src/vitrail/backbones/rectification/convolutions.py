"""3x3 convolutions of a U-Net, and how one is dilated from outside.

The taps of a convolution with dilation d lie d cells apart, so the cells that are d apart are a picture of their own,
which the plain convolution sees as it is. Only what goes in and what comes out is changed: whatever the layer is made
of (LoRA, quantised or offloaded weights) goes on, and nothing is computed that is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from vitrail.backbones.rectification.module_hooks import Hook
from vitrail.backbones.rectification.scope import blocks

if TYPE_CHECKING:
    from torch import Tensor

OUTER = ("conv_in", "conv_out")  # outside of all blocks


@frozen(eq=False)
class Convolution:
    """A 3x3 convolution with a border of one zero.

    Attributes:
        name: Dotted name in the network.
        module: The layer, or what an adapter wraps it in.
        stride: 2 where features are halved.
        halvings: How often the features were halved on the way to its block.
    """

    name: str
    module: Any
    stride: int
    halvings: int


def convolutions(network: Any, also: Sequence[str] = ()) -> dict[str, Convolution]:
    """Every one in the residual blocks, downsamplers and upsamplers, by name.

    Args:
        network: A U-Net.
        also: Names of further ones outside of all blocks.
    """
    found = [(name, getattr(network, name), 0) for name in also]
    for block in blocks(network):
        for part in ("resnets", "downsamplers", "upsamplers"):
            for i, module in enumerate(getattr(block.module, part, None) or ()):
                layers = ((each, getattr(module, each, None)) for each in ("conv1", "conv2", "conv"))
                found += [(f"{block.name}.{part}.{i}.{each}", layer, block.halvings) for each, layer in layers]
    return {name: Convolution(name, layer, _stride(layer), level) for name, layer, level in found if _fits(layer)}


def dilated(conv: Convolution, dilation: float) -> Hook:
    """A hook that dilates a convolution.

    ScaleCrafter (He et al., 2023, https://arxiv.org/abs/2310.07702), sec. 3. The answer is as large as the plain one.

    Args:
        conv: Where.
        dilation: 1 or more; between whole numbers the features are resized on the way.
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
    """The pictures of cells that lie ``dilation`` apart, one for each phase of the answer.

    With a stride the picture of a phase may begin before the features do; it is then led in by a stride of cells, whose
    answer ``collected`` drops.

    Args:
        features: Float[Tensor, "batch channels h w"].
        dilation: Distance of the taps.
        stride: Of the convolution.

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
    """The answer of the dilated convolution from those of its phases.

    Args:
        answers: Float[Tensor, "dilation*dilation*batch channels u v"].
        dilation: Distance of the taps.
        stride: Of the convolution.
        sides: Of the answer, (h, w).

    Returns:
        Float[Tensor, "batch channels h w"].
    """
    lead = int(stride > 1)
    found = answers[..., lead:, lead:]
    phases = found.reshape(dilation, dilation, -1, *found.shape[1:])
    whole: Tensor = phases.permute(2, 3, 4, 0, 5, 1).flatten(4).flatten(2, 3)
    return whole[..., : sides[0], : sides[1]]


def resized(features: Tensor, sides: Sequence[int]) -> Tensor:
    """Features of another size, bilinearly; no bit changes where they have it already."""
    import torch.nn.functional as F

    if tuple(features.shape[-2:]) == tuple(sides):
        return features
    return F.interpolate(features, size=tuple(sides), mode="bilinear")


def _fits(layer: Any) -> bool:
    from torch.nn import Conv2d

    conv = getattr(layer, "base_layer", layer)  # what an adapter wraps
    return (
        isinstance(conv, Conv2d)
        and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and conv.stride[0] == conv.stride[1]
        and conv.padding_mode == "zeros"
    )


def _stride(layer: Any) -> int:
    stride: int = getattr(layer, "base_layer", layer).stride[0]
    return stride
