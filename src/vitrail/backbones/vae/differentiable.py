"""A VAE's decoder that can be differentiated, and which networks can be at all.

A decoder is walked layer by layer: only the cells between layers are kept, and what is inside of one is worked out
again on the way back (Chen et al., 2016, https://arxiv.org/abs/1604.06174), so that memory holds one layer's
activations. A VAE in float16 is differentiated in float32, as a copy: small gradients would vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vitrail.backbones.loading.turns import moves
from vitrail.backbones.vae.decoding import ENCODER, float32_copy, is_copyable
from vitrail.backbones.vae.strip_check import check_strips
from vitrail.backbones.vae.strips import draws_noise, scaled
from vitrail.core.config.ambient import plain_defaults
from vitrail.errors import CapabilityError


def check_differentiable(vae: Any, *networks: Any) -> None:
    """Refuse networks through which there is no way back.

    Args:
        vae: Of a diffusers pipeline.
        networks: Those that predict; None for one that there is not.

    Raises:
        CapabilityError: If weights come and go with a forward, or cannot be part of a graph.
    """
    used = [network for network in (vae, *networks) if network is not None]
    if moves(*used):
        raise CapabilityError(
            "a method that differentiates needs weights that stay where they are, but hooks move or cast those of this "
            "pipeline: use it without CPU offload and layerwise casting, or another method"
        )
    if any(parameter.is_inference() for network in used for parameter in network.parameters()):
        raise CapabilityError(
            "a method that differentiates cannot use weights that were made in torch.inference_mode: load the pipeline "
            "outside of it"
        )
    if draws_noise(vae):
        raise CapabilityError(
            f"a method that differentiates needs a decoder that is a function of the latents, but {type(vae).__name__} "
            "draws noise at every decode: use another VAE, or another method"
        )
    if vae.dtype == torch.float16 and not is_copyable(vae, ENCODER):
        raise CapabilityError(
            "a VAE in float16 is differentiated as a copy in float32, but hooks or replaced methods keep this one from "
            "being copied: remove them, or use float32 or bfloat16"
        )


def decoder_of(vae: Any, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From clean latents to pictures about in [-1, 1], Float32[Tensor, "batch 3 Height Width"], differentiably."""
    used = vae
    if vae.dtype == torch.float16:
        with torch.inference_mode(False), torch.no_grad():
            used = float32_copy(vae, ENCODER, device).requires_grad_(False)
    return partial(_decode, used, _layers(used))


@plain_defaults()
def _decode(vae: Any, layers: list[Callable[[Tensor], Tensor]], latents: Tensor) -> Tensor:
    hidden = scaled(vae, latents)
    for layer in layers:
        hidden = checkpoint(layer, hidden, use_reentrant=False, preserve_rng_state=False)
    return hidden.to(latents.dtype)


def _layers(vae: Any) -> list[Callable[[Tensor], Tensor]]:
    """The decoder's layers one after another; a single one if it is another kind of decoder."""
    try:
        check_strips(vae)
    except CapabilityError:
        return [lambda hidden: vae.decode(hidden, return_dict=False)[0]]
    return list(_known_layers(vae))


def _known_layers(vae: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        yield vae.post_quant_conv
    yield from (decoder.conv_in, decoder.mid_block)
    for block in decoder.up_blocks:
        yield from (partial(resnet, temb=None) for resnet in block.resnets)
        yield from block.upsamplers or ()
    yield lambda hidden: decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
