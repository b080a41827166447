"""A convolution whose entries differ in what they are filtered with and in their dilation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from vitrail.backbones.rectification.convolutions import Convolution, collected, spread
from vitrail.backbones.rectification.low_pass import LowPass
from vitrail.backbones.rectification.module_hooks import Hook
from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor


@frozen
class RowsPart:
    """Some entries of the features.

    Attributes:
        entries: Their numbers.
        dilation: Distance of the taps; 1 is the plain convolution.
        low_pass: What they are filtered with before; None for nothing.
    """

    entries: tuple[int, ...] = field(converter=as_tuple)
    dilation: int
    low_pass: LowPass | None = None

    def of(self, features: Tensor) -> Tensor:
        """Return the filtered features of its entries, Float[Tensor, "entries channels h w"]."""
        own = features[list(self.entries)]
        return own if self.low_pass is None else self.low_pass(own)


def parted(conv: Convolution, parts: Sequence[RowsPart]) -> Hook:
    """Return a hook that filters and dilates a convolution, each part of its entries in a way of its own.

    Entries of one dilation go through the layer together. The first group does so in its own call, the others in
    further ones, which other hooks of the layer do not see.

    Args:
        conv: The convolution.
        parts: Parts that have every entry once.
    """
    dilations = list(dict.fromkeys(part.dilation for part in parts))
    groups = [[part for part in parts if part.dilation == dilation] for dilation in dilations]
    entries = [entry for group in groups for part in group for entry in part.entries]
    back = sorted(range(len(entries)), key=entries.__getitem__)
    waiting, sides = list[Any](), list[int]()

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        import torch

        sides[:] = [math.ceil(side / conv.stride) for side in args[0].shape[-2:]]
        shown = [torch.cat([part.of(args[0]) for part in group]) for group in groups]
        first, *waiting[:] = [
            spread(each, dilation, conv.stride) for each, dilation in zip(shown, dilations, strict=True)
        ]
        return (first, *args[1:]), kwargs

    def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        import torch

        answers = [output, *(module.forward(each) for each in waiting)]
        waiting.clear()
        pairs = zip(answers, dilations, strict=True)
        return torch.cat([collected(each, dilation, conv.stride, sides) for each, dilation in pairs])[back]

    return Hook(conv.name, conv.module, before, after)
