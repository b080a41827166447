"""Blocks of a U-Net and their depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen


@frozen(eq=False)
class Block:
    """A block of the encoder, the middle or the decoder.

    Attributes:
        name: Dotted name in the network.
        module: The block itself.
        halvings: Number of downsamplers before it, less upsamplers.
    """

    name: str
    module: Any
    halvings: int


def blocks(network: Any) -> Iterator[Block]:
    """Yield every block, in the order of the forward."""
    halvings = 0
    for name, module in _named(network):
        yield Block(name, module, halvings)
        halvings += getattr(module, "downsamplers", None) is not None
        halvings -= getattr(module, "upsamplers", None) is not None


def _named(network: Any) -> Iterator[tuple[str, Any]]:
    yield from ((f"down_blocks.{i}", module) for i, module in enumerate(network.down_blocks))
    if network.mid_block is not None:
        yield "mid_block", network.mid_block
    yield from ((f"up_blocks.{i}", module) for i, module in enumerate(network.up_blocks))
