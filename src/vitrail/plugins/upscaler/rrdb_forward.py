"""A pass of an RRDBNet over a picture, tile by tile, with the result of a pass over the whole.

Memory follows the tiles, not the picture, but for three maps of its features: blocks are done one after another, each
on the whole picture in tiles. A block sees 15 pixels to every side, one for each of its convolutions, so each tile is
read with as many around it, which are cut off again; at the picture's edges it ends where the picture does, and is
padded with zeros by each convolution as the whole would be. The layers after the blocks see less than 2 pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.plugins.upscaler.rrdb_layout import BLOCK_REACH, CONVS, RESIDUALS, TAIL_REACH

if TYPE_CHECKING:
    from vitrail.plugins.upscaler.rrdb_layout import Layout

SLOPE = 0.2  # of the leaky ReLUs
SHARE = 0.2  # of a residual that is added
Weights = Mapping[str, Tensor]
Layers = Callable[[Tensor], Tensor]


def forward(picture: Tensor, layout: Layout, weights: Weights, tile: int) -> Tensor:
    """Return the network's output, Float[Tensor, "1 3 factor*h factor*w"], about in [0, 1].

    Args:
        picture: In [0, 1], Float[Tensor, "1 3 h w"], of the weights' dtype and device.
        layout: Of the weights.
        weights: By our names, with ``.weight`` and ``.bias``.
        tile: Longest side that a layer works on at once, in pixels of its own.
    """
    height, width = picture.shape[-2:]
    below, right = -height % layout.shuffle, -width % layout.shuffle
    padded = F.pad(picture, (0, right, 0, below), mode="replicate") if below or right else picture
    shown = F.pixel_unshuffle(padded, layout.shuffle) if layout.shuffle > 1 else padded
    first = in_tiles(partial(_conv, weights, "first"), shown, tile, halo=1)
    hidden = first
    for number in range(layout.blocks):
        hidden = in_tiles(partial(_block, weights, number), hidden, tile, halo=BLOCK_REACH)
    hidden = in_tiles(partial(_conv, weights, "trunk"), hidden, tile, halo=1).add_(first)
    scale = 2**layout.doublings
    tail = partial(_tail, weights, layout.doublings)
    result = in_tiles(tail, hidden, max(1, tile // scale), halo=TAIL_REACH, scale=scale)
    return result[..., : layout.factor * height, : layout.factor * width]


def in_tiles(layers: Layers, values: Tensor, tile: int, halo: int, scale: int = 1) -> Tensor:
    """Apply layers to a map tile by tile.

    Args:
        layers: A function that enlarges by ``scale``, pads with zeros, and sees ``halo`` cells to every side.
        values: The map, Float[Tensor, "1 channels h w"].
        tile: Longest side of a tile without its halo, cells.
        halo: Cells that a tile is read with around it.
        scale: Sides of the result over those of the map.

    Returns:
        Float[Tensor, "1 channels scale*h scale*w"].
    """
    height, width = values.shape[-2:]
    if max(height, width) <= tile:
        return layers(values)
    result: Tensor | None = None
    for top, bottom in _cut(height, tile):
        for left, right in _cut(width, tile):
            above, before = max(0, top - halo), max(0, left - halo)
            part = layers(values[..., above : bottom + halo, before : right + halo])
            if result is None:
                result = part.new_empty((1, part.shape[1], scale * height, scale * width))
            rows = slice(scale * (top - above), scale * (bottom - above))
            columns = slice(scale * (left - before), scale * (right - before))
            result[..., scale * top : scale * bottom, scale * left : scale * right] = part[..., rows, columns]
    assert result is not None
    return result


def _cut(length: int, tile: int) -> list[tuple[int, int]]:
    """Return begin and end of the fewest parts of an axis that are no longer than a tile, as equal as can be."""
    count = -(-length // tile)
    return [(number * length // count, (number + 1) * length // count) for number in range(count)]


def _conv(weights: Weights, name: str, values: Tensor) -> Tensor:
    return F.conv2d(values, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def _block(weights: Weights, number: int, values: Tensor) -> Tensor:
    """Apply a residual-in-residual dense block (Wang et al., 2018, figure 4)."""
    hidden = values
    for residual in RESIDUALS:
        hidden = hidden + SHARE * _dense(weights, f"body.{number}.{residual}", hidden)
    return values + SHARE * hidden


def _dense(weights: Weights, name: str, values: Tensor) -> Tensor:
    """Return the residual of a dense block: each convolution sees the results of all before it."""
    seen = values
    for number in CONVS[:-1]:
        new = F.leaky_relu(_conv(weights, f"{name}.{number}", seen), SLOPE, inplace=True)
        seen = torch.cat((seen, new), 1)
    return _conv(weights, f"{name}.{CONVS[-1]}", seen)


def _tail(weights: Weights, doublings: int, values: Tensor) -> Tensor:
    """Double the side by nearest neighbours and a convolution, as often as the network does, then make colours."""
    for number in range(1, doublings + 1):
        larger = F.interpolate(values, scale_factor=2.0, mode="nearest")
        values = F.leaky_relu(_conv(weights, f"up.{number}", larger), SLOPE, inplace=True)
    values = F.leaky_relu(_conv(weights, "hr", values), SLOPE, inplace=True)
    return _conv(weights, "last", values)
