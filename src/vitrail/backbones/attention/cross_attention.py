"""Cross-attention maps by a side computation; the network's own attention and processors are not changed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from attrs import define, field, frozen
from torch import Tensor

from vitrail.backbones.rectification.scope import blocks
from vitrail.core.method.attention_maps import Over
from vitrail.errors import CapabilityError, PredictionError

MOST_SCORES = 2**24  # float32 scores at a time, 64 MiB; their softmax takes as much again
_STANCE = threading.RLock()  # torch.compile's stance is shared by all threads


@frozen(eq=False)
class AttentionHeads:
    """Input of a layer's attention map.

    Attributes:
        query: Queries of the picture's cells, Float[Tensor, "batch heads cells width"].
        key: Keys of everything that the cells attend to, Float[Tensor, "batch heads keys width"].
        scale: Factor of the scores.
        bias: Added to the scores, Float[Tensor, "batch heads #cells keys"], or None.
        first_token: Index of the key of the text's first token.
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Tensor | None = None
    first_token: int = 0


Read = Callable[[Any, Tensor, Any, Mapping[str, Any], list[int]], AttentionHeads]


@define
class Maps:
    """Flat maps of one forward.

    Attributes:
        rows: Entries of the batch whose maps are needed.
        tokens: Positions of the text tokens over which a map is taken.
        over: Whether a cell's value is the mean over the tokens or their maximum.
        words: Positions of the tokens of every word whose own map is needed.
        nearest: Whether maps of words are enlarged to the nearest cell, else bilinearly.
        layers: Number of the block and map of each attention layer, Float32[Tensor, "batch cells"].
        each_word: The maps of the words in each layer, Float32[Tensor, "batch words cells"].
        thread: Thread of the forward; ranks that are threads may share a network.
    """

    rows: list[int]
    tokens: list[int]
    over: Over = "mean"
    words: Sequence[Sequence[int]] = ()
    nearest: bool = False
    layers: list[tuple[int, Tensor]] = field(factory=list)
    each_word: list[Tensor] = field(factory=list)
    thread: int = field(factory=threading.get_ident)

    def look(
        self, number: int, read: Read, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """Compute a layer's map from its inputs; a forward pre-hook.

        Args:
            number: Number of the block.
            read: Read queries and keys from the layer's inputs.
            attention: The layer.
            args: Positional arguments of its forward.
            kwargs: Keyword arguments of its forward.

        Raises:
            PredictionError: If the text has fewer tokens than are needed.
        """
        if kwargs is None or threading.get_ident() != self.thread:
            return  # another thread's forward, which may see this hook while it is being removed
        given = dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)) | kwargs
        heads = read(attention, given["hidden_states"], given.get("encoder_hidden_states"), given, self.rows)
        columns = [heads.first_token + token for token in self.tokens]
        if not columns or max(columns) >= heads.key.shape[-2]:
            raise PredictionError(
                f"attention maps are wanted of tokens {self.tokens}, but the network was given "
                f"{heads.key.shape[-2] - heads.first_token} tokens of text"
            )
        self.layers.append((number, attention_to(heads, columns, self.over)))
        if self.words:
            flat = [heads.first_token + token for word in self.words for token in word]
            shares = shares_of(heads, flat)
            parts = torch.split(shares, [len(word) for word in self.words], -1)
            self.each_word.append(torch.stack([part.mean(-1) for part in parts], 1))

    def mean(self, size: Sequence[int]) -> Tensor:
        """Return the mean of all layers at the size of a view, Float32[Tensor, "batch 1 h w"].

        Raises:
            PredictionError: If no layer was seen.
        """
        return torch.stack([grown for _, grown in self._grown(size)]).mean(0)

    def by_word(self, size: Sequence[int]) -> Tensor:
        """Return the mean of all layers for every word at the size of a view, Float32[Tensor, "batch words h w"]."""
        height, width = size
        flat = [one.view(*one.shape[:-1], *layer_shape(height, width, one.shape[-1])) for one in self.each_word]
        if self.nearest:
            return F.interpolate(torch.stack(flat).mean(0), (height, width), mode="nearest-exact")
        grown = [F.interpolate(one, (height, width), mode="bilinear", align_corners=False) for one in flat]
        return torch.stack(grown).mean(0)

    def each(self, size: Sequence[int]) -> dict[int, Tensor]:
        """Return the mean of each block's layers by number, Float32[Tensor, "batch 1 h w"]; raises as ``mean`` does."""
        grown = self._grown(size)
        numbers = sorted({number for number, _ in grown})
        return {number: torch.stack([one for at, one in grown if at == number]).mean(0) for number in numbers}

    def _grown(self, size: Sequence[int]) -> list[tuple[int, Tensor]]:
        if not self.layers:
            raise PredictionError(
                "no attention layer was seen in this forward, so there is no map; the network may be wrapped in "
                "something that runs its layers elsewhere. Use masking = 'pfsa' or 'none', which need no maps"
            )
        height, width = size
        grown = []
        for number, flat in self.layers:
            one = flat.view(-1, 1, *layer_shape(height, width, flat.shape[1]))
            grown.append((number, F.interpolate(one, (height, width), mode="bilinear", align_corners=False)))
        return grown


def attention_to(heads: AttentionHeads, columns: Sequence[int], over: Over = "mean", most: int = MOST_SCORES) -> Tensor:
    """Return the share of attention that cells pay to some keys: softmax(q k^T scale + bias), the mean over heads.

    Args:
        heads: Queries and keys; computed in float32.
        columns: Indices of the keys.
        over: Mean or maximum over them.
        most: Number of scores held at a time; the softmax holds as many again. Those of one cell are always held.

    Returns:
        Float32[Tensor, "batch cells"].
    """
    shares = shares_of(heads, columns, most)
    return shares.mean(-1) if over == "mean" else shares.amax(-1)


def shares_of(heads: AttentionHeads, columns: Sequence[int], most: int = MOST_SCORES) -> Tensor:
    """Return the share of attention that cells pay to each of some keys.

    Args:
        heads: Queries and keys; computed in float32.
        columns: Indices of the keys.
        most: See ``attention_to``.

    Returns:
        Float32[Tensor, "batch cells columns"].
    """
    batch, count, cells, _ = heads.query.shape
    chunk = max(1, most // (batch * count * heads.key.shape[-2]))
    chosen = torch.as_tensor(list(columns), dtype=torch.int64, device=heads.key.device)
    parts = []
    with torch.autocast(heads.key.device.type, enabled=False):
        key = heads.key.float().transpose(-1, -2) * heads.scale
        for begin in range(0, cells, chunk):
            scores = heads.query[:, :, begin : begin + chunk].float() @ key
            if heads.bias is not None:
                each = heads.bias.shape[-2] > 1
                scores += heads.bias[:, :, begin : begin + chunk] if each else heads.bias
            parts.append(scores.softmax(-1).index_select(-1, chosen).mean(1))
    return torch.cat(parts, 1)


def split_heads(flat: Tensor, heads: int, norm: Any = None) -> Tensor:
    """Split heads, and normalise them if the layer does.

    Args:
        flat: Float[Tensor, "batch cells width"].
        heads: Number of heads.
        norm: The layer's normalisation, or None.

    Returns:
        Float[Tensor, "batch heads cells head_width"].
    """
    batch, cells, width = flat.shape
    split = flat.view(batch, cells, heads, width // heads).transpose(1, 2)
    normed: Tensor = split if norm is None else norm(split)
    return normed


def layer_shape(height: int, width: int, cells: int) -> tuple[int, int]:
    """Return the (height, width) of a layer from its number of cells: the view's, halved repeatedly, rounding up.

    Args:
        height: Height of the view, latent cells.
        width: Width of the view, latent cells.
        cells: Number of cells of the layer.

    Raises:
        CapabilityError: If no halving has this number of cells.
    """
    while height * width > cells:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != cells:
        raise CapabilityError(f"an attention layer has {cells} cells, which is no halving of the view")
    return height, width


def cross_attentions(unet: Any, layers: Sequence[int], halvings: int | None = None) -> list[tuple[int, Any]]:
    """Return the cross-attention modules of the chosen up blocks with the block's number, the deepest block first.

    Args:
        unet: A diffusers U-Net.
        layers: Numbers of up blocks with cross-attention; () for all.
        halvings: In place of them the blocks of encoder and decoder with so many halvings; None for ``layers``.

    Raises:
        CapabilityError: If a chosen block does not exist.
    """
    if halvings is not None:
        return _at_halvings(unet, halvings)
    decoder = [found for block in unet.up_blocks if (found := _layers_of(block))]
    missing = [i for i in layers if not -len(decoder) <= i < len(decoder)]
    if missing or not decoder:
        raise CapabilityError(
            f"up-block-attention: layers {missing or list(layers)} do not exist; this network has {len(decoder)} up "
            "blocks with cross-attention, numbered from 0 (the deepest)"
        )
    chosen = sorted({i % len(decoder) for i in layers}) if layers else range(len(decoder))
    return [(number, module) for number in chosen for module in decoder[number]]


def _at_halvings(unet: Any, halvings: int) -> list[tuple[int, Any]]:
    """Return the cross-attention modules of encoder and decoder whose cells are the latents halved so often."""
    sides = [block for block in blocks(unet) if block.name != "mid_block" and _layers_of(block.module)]
    chosen = [block.module for block in sides if block.halvings == halvings]
    if not chosen:
        known = ", ".join(map(str, sorted({block.halvings for block in sides}))) or "none"
        raise CapabilityError(
            f"halvings = {halvings}: no block of the encoder or decoder has cross-attention at the latents halved so "
            f"often; this network has some at {known}"
        )
    return [(number, layer) for number, block in enumerate(chosen) for layer in _layers_of(block)]


def _layers_of(block: Any) -> list[Any]:
    """Return the layers of a block whose cells attend to text only."""
    inner = [part for each in getattr(block, "attentions", ()) for part in getattr(each, "transformer_blocks", ())]
    layers = [part.attn2 for part in inner if getattr(part, "attn2", None) is not None]
    return [layer for layer in layers if layer.is_cross_attention]


@contextmanager
def capture_maps(
    unet: Any,
    layers: Sequence[int],
    rows: Sequence[int],
    tokens: Sequence[int],
    over: Over = "mean",
    words: Sequence[Sequence[int]] = (),
    halvings: int | None = None,
) -> Iterator[Maps]:
    """Collect attention maps during a forward, which runs uncompiled.

    Args:
        unet: A diffusers U-Net, as ``eager`` returns it.
        layers: Up blocks with cross-attention, () for all.
        rows: Entries of the batch whose maps are needed.
        tokens: Positions of the text tokens over which a map is taken.
        over: Mean or maximum over them.
        words: Positions of the tokens of every word whose own map is also needed.
        halvings: See ``cross_attentions``; maps of words are then enlarged to the nearest cell.

    Yields:
        The maps, filled by each forward in the block.
    """
    maps = Maps(list(rows), list(tokens), over, words, halvings is not None)
    with watched(unet, cross_attentions(unet, layers, halvings), read_cross, maps):
        yield maps


def read_cross(attention: Any, hidden: Tensor, text: Any, given: Mapping[str, Any], rows: list[int]) -> AttentionHeads:
    """Return queries of the cells and keys of the text, as diffusers' processors for U-Nets compute them.

    The layer's modules are called, so that LoRA, offloading and casts apply.

    Args:
        attention: The layer.
        hidden: Its cells, Float[Tensor, "batch cells width"].
        text: The text, Float[Tensor, "batch tokens width"], or a tuple that begins with it.
        given: All arguments of its forward.
        rows: Entries of the batch that are needed.
    """
    text = text[0] if isinstance(text, (tuple, list)) else text  # an IP-Adapter's embeddings come second
    hidden, mask = hidden[rows], given.get("attention_mask")
    if attention.group_norm is not None:
        hidden = attention.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    batch, words = len(text), text[rows]
    if attention.norm_cross:
        words = attention.norm_encoder_hidden_states(words)
    if mask is not None:
        mask = attention.prepare_attention_mask(mask, words.shape[1], batch)
        mask = mask.view(batch, attention.heads, -1, mask.shape[-1])[rows]
    query = split_heads(attention.to_q(hidden), attention.heads, attention.norm_q)
    key = split_heads(attention.to_k(words), attention.heads, attention.norm_k)
    return AttentionHeads(query, key, attention.scale, mask)


@contextmanager
def watched(network: Any, modules: Sequence[tuple[int, Any]], read: Read, maps: Maps) -> Iterator[None]:
    """Hook the inputs of numbered attention modules during the block; all hooks are removed afterwards.

    Args:
        network: The network that contains the modules.
        modules: (number, module) pairs.
        read: Read queries and keys from a module's inputs.
        maps: Filled by each forward in the block.
    """
    handles = [
        module.register_forward_pre_hook(functools.partial(maps.look, number, read), with_kwargs=True)
        for number, module in modules
    ]
    try:
        with _uncompiled(network):
            yield
    finally:
        for handle in handles:
            handle.remove()


def eager(network: Any) -> Any:
    """Return the network below ``torch.compile(network)``; compiled code does not see hooks that are added later.

    Networks compiled in place, by ``network.compile()`` or ``network.compile_repeated_blocks()``, run uncompiled inside
    ``capture_maps``.
    """
    return getattr(network, "_orig_mod", network)


@contextmanager
def _uncompiled(network: Any) -> Iterator[None]:
    """Run a network and all of its parts without compiled code."""
    modules = network.modules()
    if any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in modules):
        with _STANCE, torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield
