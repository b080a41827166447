"""Decoding of one large picture shared between ranks, in strips of rows that join to the whole picture.

Strips are not tiles that are blended: together they are ``vae.decode`` of the whole latents, up to the rounding
of sums. Everything before the first up block is computed for the whole, on every rank that owns a strip: it is
cheap at the size of the latents, and the attention of the mid block sees every cell. From there on each rank
holds its own strips only.

Where the edges of the picture meet (``wrap``), every convolution continues across them, so that latents rolled
by a cell are decoded to the picture rolled by as many pixels. The network's own layers pad with zeros instead,
so even a single strip then uses the layers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from vitrail.backbones.vae.strip_check import check_strips, check_wrap
from vitrail.backbones.vae.strip_ops import Alone, Shortage, StripExchange, Strips, Team
from vitrail.core.config.run_config import Wrap
from vitrail.core.schedule.streams import Streams
from vitrail.errors import OutOfMemory, ShapeError

UNSEEDED = Streams(0)  # for decoding without a run
LEAST_ROWS = 4  # latent rows of the smallest strip after halving because memory ran out


def cut_rows(height: int, native_size: int, halvings: int = 0) -> tuple[int, ...]:
    """Return the number of latent rows of each strip, from top to bottom.

    One strip up to the training size, else about two per training size. The result must not depend on the number of
    ranks: sums in another order would give another picture.

    Args:
        height: Height of the latents, cells.
        native_size: Side of a training picture, latent cells.
        halvings: How often the strips are halved, as long as ``LEAST_ROWS`` are left.
    """
    usual = 1 if height <= native_size else min(height, round(2 * height / native_size))
    count = min(usual << halvings, max(usual, height // LEAST_ROWS))
    return tuple((i + 1) * height // count - i * height // count for i in range(count))


def decode_strips(
    vae: Any,
    latents: Tensor,
    native_size: int,
    exchange: StripExchange,
    rank: int = 0,
    world_size: int = 1,
    *,
    wrap: Wrap = "none",
    halvings: int = 0,
    clip: bool = True,
) -> dict[int, Tensor]:
    """Decode the strips that this rank owns; collective.

    Args:
        vae: An ``AutoencoderKL``; not changed.
        latents: Equal on every rank, Float[Tensor, "1 channels height width"].
        native_size: Side of a training picture, latent cells.
        exchange: The ranks; ``Alone()`` for one.
        rank: This rank.
        world_size: Number of ranks; those beyond the number of strips get none.
        wrap: Axes on which the edges of the picture meet.
        halvings: How often the usual strips are halved.
        clip: Whether colours are clipped to [0, 1].

    Returns:
        Pictures in [0, 1] by strip, Float32[Tensor, "1 3 Rows Width"]; all NaN if the decoder's output is not
        finite. They are bit-identical on any number of ranks of one kind of machine with the same number of
        threads per operator (``core.engine.cpu_threads``); a single strip without ``wrap`` is bit-identical to
        ``vae.decode``.

    Raises:
        CapabilityError: Before any exchange, if there are several strips or ``wrap`` and the decoder has a layer
            that cannot be computed in strips; ``vae.decode`` on one rank still works.
        OutOfMemory: On the ranks on which memory ran out, after all exchanges, so that the others need not wait.
        ShapeError: If there is not exactly one picture.
    """
    if latents.ndim != 4 or len(latents) != 1:
        raise ShapeError(f"strips are of one picture, (1, channels, height, width), got {tuple(latents.shape)}")
    team = Team(cut_rows(latents.shape[2], native_size, halvings), rank, world_size, exchange)
    one_whole = len(team.rows) == 1 and wrap == "none"
    if not one_whole:
        (check_strips if wrap == "none" else check_wrap)(vae)
    shortage, pictures = Shortage(), dict[int, Tensor]()
    with torch.no_grad():
        if one_whole:
            with shortage.noted(pictures):
                pictures |= {0: decode_whole(vae, latents, clip=clip)} if team.own() else {}
        else:
            strips = Strips(team, latents.shape[3], {}, wrap, shortage)
            with shortage.noted(strips.tensors):
                strips.tensors.update(_begin(vae, latents, team, wrap))
            strips = _decode(vae.decoder, strips)
            with shortage.noted(strips.tensors, pictures):
                pictures |= {index: _to_picture(strips.tensors.pop(index), clip) for index in tuple(strips.tensors)}
    if shortage.reason:
        raise OutOfMemory(shortage.reason)
    return pictures


def decode_whole(vae: Any, latents: Tensor, streams: Streams = UNSEEDED, clip: bool = True) -> Tensor:
    """Decode without strips: pictures in [0, 1], Float32[Tensor, "batch 3 Height Width"]; all NaN if not finite.

    Args:
        vae: VAE of a diffusers pipeline.
        latents: As sampled, Float32[Tensor, "batch channels height width"].
        streams: For a decoder that draws noise; the same at every decode of a run.
        clip: Whether colours are clipped to [0, 1].
    """
    options = {"generator": streams.generator("decoder-noise")} if draws_noise(vae) else {}
    return _to_picture(vae.decode(scaled(vae, latents), return_dict=False, **options)[0], clip)


def draws_noise(vae: Any) -> bool:
    """Whether a decoder is itself a sampler, which starts from noise."""
    from diffusers import ConsistencyDecoderVAE

    return isinstance(vae, ConsistencyDecoderVAE)


def gather_picture(
    vae: Any,
    mine: Mapping[int, Tensor],
    latents: Tensor,
    native_size: int,
    exchange: StripExchange,
    world_size: int = 1,
    halvings: int = 0,
) -> Tensor:
    """Return the whole picture on every rank from the strips of ``decode_strips``; collective.

    Args:
        vae: VAE of a diffusers pipeline, which gives the sizes.
        mine: This rank's strips, Float32[Tensor, "1 3 Rows Width"] each.
        latents: Float32[Tensor, "1 channels height width"].
        native_size: As in ``decode_strips``.
        exchange: The ranks.
        world_size: Number of ranks.
        halvings: As in ``decode_strips``.

    Returns:
        Float32[Tensor, "1 3 Height Width"].
    """
    team = Team(cut_rows(latents.shape[2], native_size, halvings), 0, world_size, exchange)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    channels, width = vae.config.out_channels, latents.shape[3] * factor
    like = {
        (index, "picture"): torch.empty(1, channels, rows * factor, width, dtype=torch.float32, device="meta")
        for index, rows in enumerate(team.rows)
    }
    owner = {key: team.owner(key[0]) for key in like}
    every = exchange.gather({(index, "picture"): strip for index, strip in mine.items()}, like, owner)
    return torch.cat([every[key].to(latents.device) for key in like], 2)


def scaled(vae: Any, latents: Tensor) -> Tensor:
    """Scale latents as the decoder was trained on them, in its dtype."""
    config, latents = vae.config, latents.to(vae.dtype)
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor
    shift = getattr(config, "shift_factor", None)
    return latents if shift is None else latents + shift


def _begin(vae: Any, latents: Tensor, team: Team, wrap: Wrap) -> dict[int, Tensor]:
    """Compute everything before the first up block for the whole latents; keep this rank's rows of it."""
    if not team.own():
        return {}
    decoder = vae.decoder
    hidden: Tensor = scaled(vae, latents)
    if vae.post_quant_conv is not None:
        hidden = vae.post_quant_conv(hidden)
    hidden = decoder.mid_block(decoder.conv_in(hidden)) if wrap == "none" else _begin_around(decoder, hidden, wrap)
    parts = hidden.split(team.rows, 2)
    return {index: parts[index].clone(memory_format=torch.contiguous_format) for index in team.own()}


def _begin_around(decoder: Any, hidden: Tensor, wrap: Wrap) -> Tensor:
    """The same as one strip, so that it continues across the edges; attention does not depend on position."""
    mid = decoder.mid_block
    one = Strips(Team((hidden.shape[2],), 0, 1, Alone()), hidden.shape[3], {0: hidden}, wrap).conv(decoder.conv_in)
    one = one.resnet(mid.resnets[0])
    for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
        if attention is not None and not one.shortage.reason:
            one = evolve(one, tensors={0: attention(one.tensors[0])})
        one = one.resnet(resnet)
    if one.shortage.reason:
        raise MemoryError(one.shortage.reason)
    return one.tensors[0]


def _decode(decoder: Any, strips: Strips) -> Strips:
    """Compute from the first up block to the end."""
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            strips = strips.resnet(resnet)
        for upsampler in block.upsamplers or ():
            strips = strips.upsample_conv(upsampler.conv)
    return strips.norm_act_conv(decoder.conv_norm_out, decoder.conv_out)


def _to_picture(decoded: Tensor, clip: bool) -> Tensor:
    """Convert to [0, 1], clipped or about; NaN marks non-finite output, which the clamp would hide."""
    picture = decoded.float() / 2 + 0.5
    picture = picture.clamp(0, 1) if clip else picture
    return picture if bool(decoded.isfinite().all()) else picture.fill_(torch.nan)
