"""Differentiable decoder of a VAE, and the check of which networks can be differentiated.

The decoder is evaluated layer by layer with checkpointing: only tensors between layers are kept, and a layer's
activations are recomputed in the backward pass (Chen et al., 2016, https://arxiv.org/abs/1604.06174), so that memory
holds one layer's activations. A float16 VAE is differentiated as a float32 copy, since small gradients would vanish.
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
    """Refuse networks that cannot be differentiated.

    Args:
        vae: VAE of a diffusers pipeline.
        networks: The denoising networks; None for a missing one.

    Raises:
        CapabilityError: If weights are moved for a forward, were made in inference mode, or the VAE draws noise or
            cannot be copied to float32.
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
    """Return a differentiable map from clean latents to pictures.

    Returns:
        A function to Float32[Tensor, "batch 3 Height Width"], about in [-1, 1].
    """
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
    """Return the decoder's layers in order; a single function for an unknown kind of decoder."""
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
