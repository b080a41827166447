"""Rectification ``attention-scale``: self-attention scaled by the number of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen

from vitrail.backbones.rectification.module_hooks import Hook, attached, refuse_compiled, refuse_fused
from vitrail.backbones.rectification.scope import BLOCKS, after_start, blocks, choose, sites_in, within
from vitrail.core.config.fields import as_tuple, share_below_one
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.core.method.protocols import Forward

NAME = "attention-scale"


@frozen(kw_only=True)
class AttentionScale:
    """Scale self-attention's logits by sqrt(log N / log N_train), so that its entropy stays as in training.

    Attn-SF (Jin et al., Training-free Diffusion Model Adaptation for Variable-Sized Text-to-Image Synthesis, 2023,
    https://arxiv.org/abs/2306.08645), eq. 9: N is the number of tokens of a layer, N_train that at the training size.
    Tokens are counted, not sides, so a view of another shape with as many tokens is not changed. Cross-attention has
    a fixed number of keys and is not changed. Views of the training size are not changed either; use it with larger
    views (``whole``).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"self-attention"})
    sites: tuple[str, ...] = field(default=(), converter=as_tuple, validator=sites_in(*BLOCKS))  # () for all layers
    start: float = field(default=0.0, validator=share_below_one)  # share of the schedule's steps before it acts
    until: float = field(default=1.0, validator=after_start)  # share of the schedule's steps after which it is inactive

    def check(self, network: nn.Module | None) -> None:
        """Refuse sites without self-attention, and layers with fused projections."""
        refuse_compiled(network, (layer.name for layer in self._layers(network)), NAME)

    def apply(self, forward: Forward) -> AbstractContextManager[None]:
        """Multiply queries by the factor of their layer, in the steps of the range."""
        if not within(forward.step, self.start, self.until):
            return nullcontext()
        return attached(
            forward.network,
            [
                Hook(f"{layer.name}.to_q", layer.attention.to_q, after=_scale_by(layer.tokens(forward.native_size)))
                for layer in self._layers(forward.network)
            ],
            NAME,
        )

    def _layers(self, network: Any) -> list[Layer]:
        layers = {layer.name: layer for layer in self_attentions(network)}
        groups = choose(layers, self.sites or ("*",), "self-attention")
        chosen = [layers[name] for name in dict.fromkeys(name for group in groups.values() for name in group)]
        refuse_fused(((layer.name, layer.attention) for layer in chosen), NAME, "scales queries")
        return chosen


@frozen(eq=False)
class Layer:
    """A self-attention layer and its depth.

    Attributes:
        name: Dotted name in the network.
        attention: The attention module.
        halvings: Number of downsamplers before it.
    """

    name: str
    attention: Any
    halvings: int

    def tokens(self, side: int) -> int:
        """Return the number of tokens of a square view, from the view's side in latent cells."""
        for _ in range(self.halvings):
            side = (side + 1) // 2
        return side * side


def self_attentions(network: Any) -> Iterator[Layer]:
    """Yield every self-attention layer of a U-Net's transformers, in the order of the forward."""
    for block in blocks(network):
        for i, transformer in enumerate(getattr(block.module, "attentions", None) or ()):
            for j, inner in enumerate(getattr(transformer, "transformer_blocks", ())):
                for each in ("attn1", "attn2"):
                    attention = getattr(inner, each)
                    if attention is not None and not attention.is_cross_attention:
                        where = f"{block.name}.attentions.{i}.transformer_blocks.{j}.{each}"
                        yield Layer(where, attention, block.halvings)


def factor(tokens: int, native_tokens: int) -> float:
    """Return the factor of the logits; exactly 1 for as many tokens as in training.

    Raises:
        CapabilityError: If a layer has a single token at the training size, so that its entropy is always 0.
    """
    if tokens == native_tokens:
        return 1.0
    if native_tokens < 2:
        raise CapabilityError(
            f"{NAME}: a layer of one token at the training size has no entropy to keep; choose other sites"
        )
    return math.sqrt(math.log(tokens) / math.log(native_tokens))


def _scale_by(native_tokens: int) -> Any:
    """Return a hook that scales the queries, Float[Tensor, "batch tokens width"]."""

    def scale(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], queries: Tensor) -> Tensor | None:
        by = factor(queries.shape[1], native_tokens)
        return None if by == 1.0 else queries * by

    return scale
