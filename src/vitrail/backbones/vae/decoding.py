"""Decoding and encoding of pictures: dtype, strips or whole, and what happens when memory runs out.

A VAE runs in its own dtype, except that a float16 one with ``force_upcast`` (as Stable Diffusion XL's) runs in float32,
since it overflows in float16. A non-finite result in half precision is computed again in float32. For that the needed
part is copied, so that the owner's VAE does not change; one that is offloaded between calls, or whose methods were
replaced, cannot be copied, and is cast and cast back as in diffusers' pipelines, which changes no value.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from vitrail.backbones.vae.strip_check import check_strips
from vitrail.backbones.vae.strip_check import check_wrap as check_wrap
from vitrail.backbones.vae.strip_ops import Shortage, StripExchange
from vitrail.backbones.vae.strips import UNSEEDED, cut_rows, decode_strips, decode_whole, gather_picture
from vitrail.core.config.log import logger
from vitrail.core.config.run_config import Wrap
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError, OutOfMemory, PredictionError, ShapeError

HALVES = (torch.float16, torch.bfloat16)
ENCODER, DECODER = ("encoder", "quant_conv"), ("decoder", "post_quant_conv")
METHODS = {ENCODER: ("decode", "_decode"), DECODER: ("encode", "_encode")}  # methods that do not use those parts
HOOKED = ("_hf_hook", "_old_forward", "forward")  # attributes that model offload sets on a module
REMEDIES = "a smaller picture, another --dtype, or a VAE without hooks and tiling, which can be cut into strips"
_ONE_BY_ONE = threading.Lock()  # for ranks that are threads, with a VAE that cannot be copied


def decode(
    vae: Any,
    latents: Tensor,
    native_size: int,
    exchange: StripExchange,
    wrap: Wrap = "none",
    backs_off: bool = True,
    upcasts: bool = True,
    streams: Streams = UNSEEDED,
    clip: bool = True,
) -> Tensor:
    """Decode latents to a picture, on every rank; collective, since ranks share a large one by strips.

    A VAE that cannot be split decodes the whole picture on every rank.

    Args:
        vae: VAE of a diffusers pipeline; not changed.
        latents: Latents of one picture, as sampled, Float32[Tensor, "1 channels height width"].
        native_size: Side of a training picture, latent cells.
        exchange: The ranks; ``Alone()`` for one.
        wrap: Axes on which the edges of the picture meet.
        backs_off: Whether strips that do not fit in memory are halved.
        upcasts: Whether ``force_upcast`` applies; most VAEs set it by default, but only XL's pipelines use it.
        streams: Random streams of the picture, for a decoder that draws noise.
        clip: Whether colours are clipped to [0, 1]; a decoder may overshoot.

    Returns:
        In [0, 1], without ``clip`` about so, Float32[Tensor, "1 3 Height Width"].

    Raises:
        CapabilityError: If edges are to meet and the VAE does not support it; ``check_wrap`` checks that before a run.
        OutOfMemory: If it does not fit in memory, in the smallest strips.
        PredictionError: If it is not finite, in float32 either.
    """
    if wrap != "none":
        check_wrap(vae)

    def once(used: Any, copyable: bool) -> Tensor:
        if wrap == "none" and not (copyable and _can_cut(used)):
            return _whole(used, latents, streams, clip)
        return _in_strips(used, latents, native_size, exchange, wrap, backs_off, clip)

    return _finite(vae, ENCODER, latents.device, once, "the decoded picture", upcasts)


def encode(vae: Any, picture: Tensor, noise: Tensor | None = None, upcasts: bool = True) -> Tensor:
    """Return latents of a picture, sampled from the encoder's posterior: mean plus ``noise`` times deviation.

    Args:
        vae: VAE of a diffusers pipeline; not changed.
        picture: In [-1, 1], Float32[Tensor, "1 3 Height Width"].
        noise: Standard normal, of the latents' shape, Float32[Tensor, "1 channels height width"]; None for the mean.
        upcasts: As in ``decode``.

    Returns:
        Latents as the sampler uses them, Float32[Tensor, "1 channels height width"].

    Raises:
        PredictionError: If they are not finite, in float32 either.
        ShapeError: If the noise has another shape than the latents.
    """

    def once(used: Any, copyable: bool) -> Tensor:
        answer = used.encode(picture.to(used.dtype))
        posterior = getattr(answer, "latent_dist", None)
        if posterior is None:  # a deterministic VAE
            return _normalised(vae.config, answer.latents.float())
        mean = posterior.mean
        if noise is not None and noise.shape != mean.shape:
            raise ShapeError(f"the noise must have the latents' shape {tuple(mean.shape)}, got {tuple(noise.shape)}")
        drawn = mean if noise is None else mean + posterior.std * noise.to(mean)
        return _normalised(vae.config, drawn.float())

    return _finite(vae, DECODER, picture.device, once, "the encoded picture", upcasts)


def _normalised(config: Any, latents: Tensor) -> Tensor:
    """Normalise the encoder's latents as the network was trained on them."""
    scale: float = config.scaling_factor
    shift = getattr(config, "shift_factor", None)
    latents = latents if shift is None else latents - shift
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return latents * scale
    middle, spread = (latents.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
    return (latents - middle) * scale / spread


def _finite(
    vae: Any,
    unused: tuple[str, str],
    device: torch.device,
    once: Callable[[Any, bool], Tensor],
    what: str,
    upcasts: bool,
) -> Tensor:
    """Compute a result in the dtype that the VAE needs.

    Args:
        vae: The owner's VAE.
        unused: Names of its parts that the result does not need.
        device: Device of the computation.
        once: Compute it with a VAE, given whether that can be copied; the result is not finite after an overflow.
        what: Name of the result in messages.
        upcasts: Whether ``force_upcast`` applies.
    """
    copyable = is_copyable(vae, unused)
    with torch.no_grad(), nullcontext() if copyable else _ONE_BY_ONE:
        is_half = vae.dtype in HALVES
        if vae.dtype != torch.float16 or not (upcasts and getattr(vae.config, "force_upcast", False)):
            answer = once(vae, copyable)
            if bool(answer.isfinite().all()):
                return answer
            if is_half:
                logger().warning("vae.overflowed", what=what, dtype=str(vae.dtype).removeprefix("torch."))
        if is_half:
            with _in_float32(vae, unused, device, copyable) as used:
                answer = once(used, copyable)
    if not bool(answer.isfinite().all()):
        raise PredictionError(f"{what} is not finite, in float32 either; look at the weights of the VAE and its input")
    return answer


def is_copyable(vae: Any, unused: tuple[str, str]) -> bool:
    """Whether a VAE computes by its own unmodified modules only; ``unused`` parts are not checked."""
    parts = [part for name, part in vae.named_children() if name not in unused]
    modules = [module for part in parts for module in part.modules()]
    if any(method in vars(vae) for method in METHODS[unused]) or any(p.is_meta for p in vae.parameters()):
        return False
    changed = {"_hf_hook", "forward"}
    return not any(m._forward_hooks or m._forward_pre_hooks or changed & vars(m).keys() for m in modules)


def float32_copy(vae: Any, unused: tuple[str, str], device: torch.device) -> Any:
    """Return a float32 copy, without some parts, of a VAE that ``is_copyable``.

    Args:
        vae: The VAE.
        unused: Names of the parts to leave out.
        device: Device of the copy.
    """
    shell = copy.copy(vae)
    shell.__dict__ = {name: value for name, value in vars(vae).items() if name not in HOOKED}
    shell._modules = {name: part for name, part in vae._modules.items() if name not in unused}
    return copy.deepcopy(shell).float().to(device)


@contextmanager
def _in_float32(vae: Any, unused: tuple[str, str], device: torch.device, copyable: bool) -> Iterator[Any]:
    """Yield a float32 copy without some parts, or the VAE itself, cast during the block."""
    if copyable:
        yield float32_copy(vae, unused, device)
        return
    kinds = {name: tensor.dtype for name, tensor in (*vae.named_parameters(), *vae.named_buffers())}
    with torch.inference_mode(False), torch.no_grad():  # weights cast in inference mode could not be trained again
        vae.float()
    try:
        yield vae
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in (*vae.named_parameters(), *vae.named_buffers()):
                tensor.data = tensor.data.to(kinds[name])


def _can_cut(vae: Any) -> bool:
    try:
        check_strips(vae)
    except CapabilityError as error:
        logger().info("decode.replicated", reason=str(error))
        return False
    return True


def _whole(vae: Any, latents: Tensor, streams: Streams, clip: bool) -> Tensor:
    """Decode without strips; it cannot be split further when memory runs out."""
    shortage, pictures = Shortage(), dict[int, Tensor]()
    with shortage.noted():
        pictures[0] = decode_whole(vae, latents, streams, clip)
    if shortage.reason:
        raise OutOfMemory(f"out of memory while decoding the whole picture: {shortage.reason}; try {REMEDIES}")
    return pictures[0]


def _in_strips(
    vae: Any, latents: Tensor, native_size: int, exchange: StripExchange, wrap: Wrap, backs_off: bool, clip: bool
) -> Tensor:
    """Decode in strips, halved on all ranks as long as memory runs out on any of them."""
    halvings, rows = 0, cut_rows(latents.shape[2], native_size)
    while True:
        mine, reason = dict[int, Tensor](), ""
        try:
            mine = decode_strips(
                vae,
                latents,
                native_size,
                exchange,
                exchange.rank,
                exchange.world_size,
                wrap=wrap,
                halvings=halvings,
                clip=clip,
            )
        except OutOfMemory as error:
            reason = str(error)
        reason = _shortage(exchange, reason)
        if not reason:
            return gather_picture(vae, mine, latents, native_size, exchange, exchange.world_size, halvings)
        smaller = cut_rows(latents.shape[2], native_size, halvings + 1)
        if smaller == rows or not backs_off:
            what = f"while decoding strips of {max(rows)} latent rows"
            raise OutOfMemory(f"out of memory {what}: {reason}; try a smaller picture, another --dtype or more ranks")
        halvings, rows = halvings + 1, smaller
        logger().warning("decode.short", rows=max(rows), reason=reason)


def _shortage(exchange: StripExchange, reason: str) -> str:
    """Return why memory ran out on the first rank on which it did, "" if on none; collective."""
    keys = [(rank, "short") for rank in range(exchange.world_size)]
    like = {key: torch.empty(1, dtype=torch.uint8, device="meta") for key in keys}
    mine = {(exchange.rank, "short"): torch.tensor([bool(reason)], dtype=torch.uint8, device="cpu")}
    reports = exchange.gather(mine, like, {key: key[0] for key in keys})
    short = [rank for rank, _ in keys if bool(reports[rank, "short"])]
    return (reason or f"on rank {short[0]}") if short else ""
