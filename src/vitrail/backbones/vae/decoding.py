"""From latents to a picture and from a picture to latents: in which type, in strips or whole, and if memory runs out.

A VAE runs in its own type, except that one in float16 which says that it overflows there (``force_upcast``, as
Stable Diffusion XL's does) runs in float32. An answer in half precision that is not finite is worked out again in
float32. For that the part that is needed is copied, so that its owner's VAE stays as it is; only one whose weights
lie elsewhere between calls, or whose methods somebody replaced, cannot be copied, and is cast and cast back as
diffusers' pipelines do, which changes no value.
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
METHODS = {ENCODER: ("decode", "_decode"), DECODER: ("encode", "_encode")}  # that do without those parts
HOOKED = ("_hf_hook", "_old_forward", "forward")  # what model offload puts on a module
REMEDIES = "a smaller picture, another --dtype, or a VAE without hooks and tiling, which can be cut into strips"
_ONE_BY_ONE = threading.Lock()  # ranks that are threads, with a VAE that cannot be copied


def decode(
    vae: Any,
    latents: Tensor,
    native_size: int,
    exchange: StripExchange,
    wrap: Wrap = "none",
    backs_off: bool = True,
    upcasts: bool = True,
    streams: Streams = UNSEEDED,
) -> Tensor:
    """A picture from latents, on every rank; collective, since ranks share a large one by strips.

    A VAE that cannot be cut decodes the whole picture on every rank.

    Args:
        vae: Of a diffusers pipeline; it is left as it was.
        latents: Of one picture, as the sampler has them, Float32[Tensor, "1 channels height width"].
        native_size: Latent cells of the pictures that the model was trained on.
        exchange: Between the ranks; ``Alone()`` for one.
        wrap: Axes on which the edges of the picture meet.
        backs_off: Whether strips that do not fit in memory are halved.
        upcasts: Whether ``force_upcast`` counts; most VAEs say it by default, and only XL's pipelines mind.
        streams: Of the picture, for a decoder that draws noise.

    Returns:
        In [0, 1], Float32[Tensor, "1 3 Height Width"].

    Raises:
        CapabilityError: If the edges are to meet and the VAE cannot do that; ``check_wrap`` tells before a run.
        OutOfMemory: If it does not fit in memory, in the smallest strips.
        PredictionError: If it is not finite, in float32 either.
    """
    if wrap != "none":
        check_wrap(vae)

    def once(used: Any, copyable: bool) -> Tensor:
        if wrap == "none" and not (copyable and _can_cut(used)):
            return _whole(used, latents, streams)
        return _in_strips(used, latents, native_size, exchange, wrap, backs_off)

    return _finite(vae, ENCODER, latents.device, once, "the decoded picture", upcasts)


def encode(vae: Any, picture: Tensor, noise: Tensor | None = None, upcasts: bool = True) -> Tensor:
    """Latents of a picture, drawn from the encoder's posterior: its mean and ``noise`` times its deviation.

    Args:
        vae: Of a diffusers pipeline; it is left as it was.
        picture: In [-1, 1], Float32[Tensor, "1 3 Height Width"].
        noise: Standard normal, of the latents' shape, Float32[Tensor, "1 channels height width"]; None for the mean.
        upcasts: As in ``decode``.

    Returns:
        As the sampler has them, Float32[Tensor, "1 channels height width"].

    Raises:
        PredictionError: If they are not finite, in float32 either.
        ShapeError: If the noise has another shape than the latents.
    """

    def once(used: Any, copyable: bool) -> Tensor:
        answer = used.encode(picture.to(used.dtype))
        posterior = getattr(answer, "latent_dist", None)
        if posterior is None:  # a VAE that knows one answer only
            return _normalised(vae.config, answer.latents.float())
        mean = posterior.mean
        if noise is not None and noise.shape != mean.shape:
            raise ShapeError(f"the noise must have the latents' shape {tuple(mean.shape)}, got {tuple(noise.shape)}")
        drawn = mean if noise is None else mean + posterior.std * noise.to(mean)
        return _normalised(vae.config, drawn.float())

    return _finite(vae, DECODER, picture.device, once, "the encoded picture", upcasts)


def _normalised(config: Any, latents: Tensor) -> Tensor:
    """The encoder's latents as the network was trained on them."""
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
    """The answer in the type that the VAE needs.

    Args:
        vae: The owner's.
        unused: Its parts that the answer does without.
        device: Where it is worked out.
        once: Works it out with a VAE, knowing whether that can be copied; NaN or infinite if it overflows.
        what: For messages.
        upcasts: Whether ``force_upcast`` counts.
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
    """Whether all that computes is in the VAE's own modules, as it was built; some parts are not looked at."""
    parts = [part for name, part in vae.named_children() if name not in unused]
    modules = [module for part in parts for module in part.modules()]
    if any(method in vars(vae) for method in METHODS[unused]) or any(p.is_meta for p in vae.parameters()):
        return False
    changed = {"_hf_hook", "forward"}
    return not any(m._forward_hooks or m._forward_pre_hooks or changed & vars(m).keys() for m in modules)


def float32_copy(vae: Any, unused: tuple[str, str], device: torch.device) -> Any:
    """A copy in float32 without some parts, of a VAE that ``is_copyable``."""
    shell = copy.copy(vae)
    shell.__dict__ = {name: value for name, value in vars(vae).items() if name not in HOOKED}
    shell._modules = {name: part for name, part in vae._modules.items() if name not in unused}
    return copy.deepcopy(shell).float().to(device)


@contextmanager
def _in_float32(vae: Any, unused: tuple[str, str], device: torch.device, copyable: bool) -> Iterator[Any]:
    """A copy in float32 without some parts; or the VAE itself, for the time being."""
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


def _whole(vae: Any, latents: Tensor, streams: Streams) -> Tensor:
    """The ordinary decode; cutting it any finer is not known how to."""
    shortage, pictures = Shortage(), dict[int, Tensor]()
    with shortage.noted():
        pictures[0] = decode_whole(vae, latents, streams)
    if shortage.reason:
        raise OutOfMemory(f"out of memory while decoding the whole picture: {shortage.reason}; try {REMEDIES}")
    return pictures[0]


def _in_strips(
    vae: Any, latents: Tensor, native_size: int, exchange: StripExchange, wrap: Wrap, backs_off: bool
) -> Tensor:
    """The same in strips, halved on all ranks as long as any of them runs out of memory."""
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
    """Why the first rank that ran out of memory did so, or "" if none has; collective."""
    keys = [(rank, "short") for rank in range(exchange.world_size)]
    like = {key: torch.empty(1, dtype=torch.uint8, device="meta") for key in keys}
    mine = {(exchange.rank, "short"): torch.tensor([bool(reason)], dtype=torch.uint8, device="cpu")}
    reports = exchange.gather(mine, like, {key: key[0] for key in keys})
    short = [rank for rank, _ in keys if bool(reports[rank, "short"])]
    return (reason or f"on rank {short[0]}") if short else ""
