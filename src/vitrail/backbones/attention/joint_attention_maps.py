"""Attention maps of transformers in which picture and text attend to each other (MM-DiT), by a side computation.

In Stable Diffusion 3 (Esser et al., 2024, https://arxiv.org/abs/2403.03206, sec. 4) the cells of the picture and
the tokens of the text are one sequence: each cell distributes its attention over all cells and all tokens. The map
of a token is the share that each cell pays to it, so it is small: most is paid to other cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vitrail.backbones.attention.cross_attention import AttentionHeads, Maps, split_heads, watched
from vitrail.core.method.attention_maps import Over
from vitrail.errors import CapabilityError


def check_blocks(transformer: Any, layers: Sequence[int]) -> list[int]:
    """Return the numbers of the chosen blocks, counted from the first.

    () chooses the later half, where objects have formed.

    Raises:
        CapabilityError: If a chosen block does not exist, or the network has no joint attention.
    """
    blocks = getattr(transformer, "transformer_blocks", ())
    if not blocks or any(getattr(block.attn, "add_k_proj", None) is None for block in blocks):
        raise CapabilityError(f"joint-attention: {type(transformer).__name__} has no blocks with joint attention")
    missing = [i for i in layers if not -len(blocks) <= i < len(blocks)]
    if missing:
        raise CapabilityError(
            f"joint-attention: layers {missing} do not exist; this network has {len(blocks)} blocks, numbered from 0, "
            "or from -1 backwards"
        )
    return sorted({i % len(blocks) for i in layers}) or list(range(len(blocks) // 2, len(blocks)))


@contextmanager
def capture_joint_maps(
    transformer: Any,
    layers: Sequence[int],
    rows: Sequence[int],
    tokens: Sequence[int],
    over: Over = "mean",
    words: Sequence[Sequence[int]] = (),
) -> Iterator[Maps]:
    """Collect attention maps during a forward, which runs uncompiled.

    The scores of all cells against all cells and tokens, "batch heads cells cells+tokens", are never held at once;
    see ``attention_to``.

    Args:
        transformer: diffusers' ``SD3Transformer2DModel``, as ``eager`` returns it.
        layers: Blocks, negative ones counted from the last; () for the later half.
        rows: Entries of the batch whose maps are needed.
        tokens: Positions of the text tokens over which a map is taken: those of the CLIP encoders come first
            and share their positions, those of T5 follow.
        over: Mean or maximum over them.
        words: Positions of the tokens of every word whose own map is also needed.

    Yields:
        The maps, filled by each forward in the block. Sizes are those of the network's input,
        multiples of its patch size.
    """
    maps = Maps(list(rows), list(tokens), over, words)
    modules = [(number, transformer.transformer_blocks[number].attn) for number in check_blocks(transformer, layers)]
    with watched(transformer, modules, read_joint, maps):
        yield maps


def read_joint(
    attention: Any, hidden: Tensor, text: Tensor, given: Mapping[str, Any], rows: list[int]
) -> AttentionHeads:
    """Return queries of the cells and keys of cells and text, as diffusers' ``JointAttnProcessor2_0`` computes them.

    Args:
        attention: The layer.
        hidden: Its cells, Float[Tensor, "batch cells width"].
        text: Its text, Float[Tensor, "batch tokens width"].
        given: All arguments of its forward; unused.
        rows: Entries of the batch that are needed.
    """
    hidden, words = hidden[rows], text[rows]
    query = split_heads(attention.to_q(hidden), attention.heads, attention.norm_q)
    cells = split_heads(attention.to_k(hidden), attention.heads, attention.norm_k)
    tokens = split_heads(attention.add_k_proj(words), attention.heads, attention.norm_added_k)
    return AttentionHeads(query, torch.cat([cells, tokens], 2), attention.scale, None, cells.shape[2])
