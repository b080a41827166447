"""Cross-attention maps by a side computation; the network's own attention and processors stay as they are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from attrs import define, field
from torch import Tensor

from vitrail.errors import CapabilityError


@define
class Maps:
    """Flat maps of one forward.

    Attributes:
        rows: Entries of the batch whose maps are wanted.
        tokens: Positions of the text tokens over which a map is averaged.
        layers: One a layer, Float32[Tensor, "batch cells"].
        thread: Whose forward it is; ranks that are threads may share a network.
    """

    rows: list[int]
    tokens: list[int]
    layers: list[Tensor] = field(factory=list)
    thread: int = field(factory=threading.get_ident)

    def look(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Compute a layer's map from what it is about to receive; a forward pre-hook."""
        if kwargs is None or threading.get_ident() != self.thread:
            return  # the forward of another thread, which may see this hook while it is being removed
        hidden, text = args[0][self.rows], kwargs["encoder_hidden_states"][self.rows]
        query, key = _heads(attention.to_q(hidden), attention.heads), _heads(attention.to_k(text), attention.heads)
        scores = (query.float() @ key.float().transpose(-1, -2) * attention.scale).softmax(-1)
        self.layers.append(scores[..., self.tokens].mean((1, 3)))

    def mean(self, size: Sequence[int]) -> Tensor:
        """The mean of all layers at the size of a view, Float32[Tensor, "batch 1 h w"]."""
        height, width = size
        grown = []
        for flat in self.layers:
            shape = layer_shape(height, width, flat.shape[1])
            grown.append(F.interpolate(flat.view(-1, 1, *shape), (height, width), mode="bilinear", align_corners=False))
        return torch.stack(grown).mean(0)


def layer_shape(height: int, width: int, cells: int) -> tuple[int, int]:
    """The (height, width) of a layer from its number of cells: halved, rounding up, some times."""
    while height * width > cells:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != cells:
        raise CapabilityError(f"an attention layer has {cells} cells, which is no halving of the view")
    return height, width


def cross_attentions(unet: Any, layers: Sequence[int]) -> list[Any]:
    """The cross-attention modules of the chosen up blocks, the deepest block first.

    Raises:
        CapabilityError: If a chosen block does not exist.
    """
    blocks = [block for block in unet.up_blocks if getattr(block, "attentions", None)]
    missing = [i for i in layers if not -len(blocks) <= i < len(blocks)]
    if missing or not blocks:
        raise CapabilityError(
            f"up-block-attention: layers {missing or list(layers)} do not exist; this network has {len(blocks)} up "
            "blocks with cross-attention, numbered from 0 (the deepest)"
        )
    chosen = [blocks[i] for i in layers] if layers else blocks
    return [
        inner.attn2 for block in chosen for transformer in block.attentions for inner in transformer.transformer_blocks
    ]


@contextmanager
def capture_maps(unet: Any, layers: Sequence[int], rows: Sequence[int], tokens: Sequence[int]) -> Iterator[Maps]:
    """Collect attention maps during a forward.

    Args:
        unet: A diffusers U-Net.
        layers: Up blocks with cross-attention, () for all.
        rows: Entries of the batch whose maps are wanted.
        tokens: Positions of the text tokens over which a map is averaged.

    Yields:
        The maps, filled by each forward in the block: softmax(q k^T / sqrt(d)) in float32, the mean over
        heads and tokens.
    """
    maps = Maps(list(rows), list(tokens))
    handles = [
        module.register_forward_pre_hook(maps.look, with_kwargs=True) for module in cross_attentions(unet, layers)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _heads(flat: Tensor, heads: int) -> Tensor:
    """Split heads: "batch cells width" to "batch heads cells head_width"."""
    batch, cells, width = flat.shape
    return flat.view(batch, cells, heads, width // heads).transpose(1, 2)
