"""Decoding of one large picture shared between ranks: strips of rows that add up to the whole decode.

These are no tiles to be blended: the strips together are ``vae.decode`` of the whole latents, up to the
rounding of sums. Until the first up block all is computed for the whole, on every rank that owns a strip:
it is cheap at the size of the latents, and the attention of the mid block sees every cell. From there on
each rank holds its own strips only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from vitrail.backbones.strip_check import check_strips
from vitrail.backbones.strip_ops import Exchange, Strips, Team
from vitrail.errors import ShapeError


def cut_rows(height: int, native_size: int) -> tuple[int, ...]:
    """How many latent rows each strip has, from top to bottom.

    One strip up to the model's own size, else about two of them for each such size. The cut must not know
    the number of ranks: sums in another order would make another picture.
    """
    count = 1 if height <= native_size else min(height, round(2 * height / native_size))
    return tuple((i + 1) * height // count - i * height // count for i in range(count))


def decode_strips(
    vae: Any, latents: Tensor, native_size: int, exchange: Exchange, rank: int = 0, world_size: int = 1
) -> dict[int, Tensor]:
    """Decode the strips that this rank owns; collective.

    Args:
        vae: An ``AutoencoderKL``; it is left as it was.
        latents: The same on every rank, Float[Tensor, "1 channels height width"].
        native_size: Latent cells of the pictures that the model was trained on.
        exchange: Between the ranks; ``Alone()`` for one.
        rank: This one.
        world_size: Of all ranks; those beyond the number of strips get none.

    Returns:
        Pictures in [0, 1] by strip, Float32[Tensor, "1 3 Rows Width"]. They are bit for bit the same on any
        number of ranks of one kind of machine and one number of threads, on which the order of sums inside
        torch depends; a single strip is bit for bit ``vae.decode``.

    Raises:
        CapabilityError: Before any exchange, if there are several strips and the decoder has a layer that
            cannot be cut; ``vae.decode`` on one rank still works.
        ShapeError: If there is not exactly one picture.
    """
    if latents.ndim != 4 or len(latents) != 1:
        raise ShapeError(f"strips are of one picture, (1, channels, height, width), got {tuple(latents.shape)}")
    team = Team(cut_rows(latents.shape[2], native_size), rank, world_size, exchange)
    own = team.own()
    with torch.no_grad():
        if len(team.rows) == 1:
            return {0: decode_whole(vae, latents)} if own else {}
        check_strips(vae)
        strips = Strips(team, latents.shape[3], _begin(vae, latents, team) if own else {})
        return {index: _to_picture(strip) for index, strip in _decode(vae.decoder, strips).tensors.items()}


def decode_whole(vae: Any, latents: Tensor) -> Tensor:
    """The ordinary decode: pictures in [0, 1], Float32[Tensor, "batch 3 Height Width"]."""
    return _to_picture(vae.decode(_scale(vae, latents), return_dict=False)[0])


def gather_picture(
    vae: Any, mine: Mapping[int, Tensor], latents: Tensor, native_size: int, exchange: Exchange, world_size: int = 1
) -> Tensor:
    """The whole picture on every rank from what ``decode_strips`` gave; collective.

    Returns:
        Float32[Tensor, "1 3 Height Width"].
    """
    team = Team(cut_rows(latents.shape[2], native_size), 0, world_size, exchange)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    channels, width = vae.config.out_channels, latents.shape[3] * factor
    like = {
        (index, "picture"): torch.empty(1, channels, rows * factor, width, device="meta")
        for index, rows in enumerate(team.rows)
    }
    owner = {key: team.owner(key[0]) for key in like}
    every = exchange.gather({(index, "picture"): strip for index, strip in mine.items()}, like, owner)
    return torch.cat([every[key].to(latents.device) for key in like], 2)


def _scale(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the decoder was trained on them."""
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None)
    return cast("Tensor", scaled if shift is None else scaled + shift)


def _begin(vae: Any, latents: Tensor, team: Team) -> dict[int, Tensor]:
    """All before the first up block, over the whole latents; only this rank's rows of it are kept."""
    hidden = _scale(vae, latents)
    if vae.post_quant_conv is not None:
        hidden = vae.post_quant_conv(hidden)
    hidden = vae.decoder.mid_block(vae.decoder.conv_in(hidden))
    parts = hidden.split(team.rows, 2)
    return {index: parts[index].clone(memory_format=torch.contiguous_format) for index in team.own()}


def _decode(decoder: Any, strips: Strips) -> Strips:
    """From the first up block to the end."""
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            strips = strips.resnet(resnet)
        for upsampler in block.upsamplers or ():
            strips = strips.upsample_conv(upsampler.conv)
    return strips.norm_act_conv(decoder.conv_norm_out, decoder.conv_out)


def _to_picture(decoded: Tensor) -> Tensor:
    return (decoded.float() / 2 + 0.5).clamp(0, 1)
