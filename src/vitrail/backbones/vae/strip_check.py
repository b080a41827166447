"""Check of which decoders can be computed in strips: those whose layers are all known and unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from vitrail.errors import CapabilityError

Finding = tuple[str, str]  # where, what


def check_strips(vae: Any) -> None:
    """Refuse a decoder with a layer that cannot be computed in strips.

    Raises:
        CapabilityError: Naming the layer.
    """
    for where, what in _findings(vae):
        raise CapabilityError(
            f"{where} {what}, so the picture cannot be decoded in strips; decode it whole, on one rank"
        )


def check_wrap(vae: Any) -> None:
    """Refuse a decoder that cannot continue across the edges of the picture.

    Raises:
        CapabilityError: Naming the layer.
    """
    for where, what in chain(_findings(vae), _before_up_blocks(vae)):
        raise CapabilityError(
            f"wrap needs a decoder whose every layer is known, but {where} {what}; use wrap 'none', or a plain "
            "AutoencoderKL without offload hooks and tiling"
        )


def _findings(vae: Any) -> Iterator[Finding]:
    yield from _other_class("the vae", vae, AutoencoderKL)
    if getattr(vae, "use_tiling", False):
        yield "the vae", "is set to decode in tiles"
    yield from _altered("the vae", vae, ("forward", "decode", "_decode"))
    decoder = vae.decoder
    yield from _other_class("decoder", decoder, Decoder)
    for name, module in decoder.named_modules(prefix="decoder"):
        yield from _altered(name, module, ("forward",))
    yield from _other_class("decoder.mid_block", decoder.mid_block, UNetMidBlock2D)
    for i, block in enumerate(decoder.up_blocks):
        yield from _up_block(f"decoder.up_blocks.{i}", block)
    yield from _norm_act_conv("decoder", decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)


def _before_up_blocks(vae: Any) -> Iterator[Finding]:
    """Check the layers that are replaced only if edges meet."""
    if vae.post_quant_conv is not None:
        yield from _conv("post_quant_conv", vae.post_quant_conv, 1)
        yield from _altered("post_quant_conv", vae.post_quant_conv, ("forward",))
    yield from _conv("decoder.conv_in", vae.decoder.conv_in, 3)
    for i, resnet in enumerate(vae.decoder.mid_block.resnets):
        yield from _resnet(f"decoder.mid_block.resnets.{i}", resnet)
    for i, attention in enumerate(vae.decoder.mid_block.attentions):
        where = f"decoder.mid_block.attentions.{i}"
        if attention is not None:
            yield from _other_class(where, attention, Attention)


def _up_block(where: str, block: Any) -> Iterator[Finding]:
    yield from _other_class(where, block, UpDecoderBlock2D)
    for i, resnet in enumerate(block.resnets):
        yield from _resnet(f"{where}.resnets.{i}", resnet)
    for i, upsampler in enumerate(block.upsamplers or ()):
        name = f"{where}.upsamplers.{i}"
        yield from _other_class(name, upsampler, Upsample2D)
        usual = upsampler.use_conv and upsampler.interpolate and upsampler.name == "conv"
        if not usual or upsampler.use_conv_transpose or upsampler.norm is not None:
            yield name, "does not repeat cells and convolve them"
        yield from _conv(f"{name}.conv", upsampler.conv, 3)


def _resnet(where: str, block: Any) -> Iterator[Finding]:
    yield from _other_class(where, block, ResnetBlock2D)
    if block.upsample is not None or block.downsample is not None:
        yield where, "resamples"
    if block.time_emb_proj is not None or block.time_embedding_norm not in ("default", "group"):
        yield where, "has a time embedding"
    if block.training and block.dropout.p > 0:
        yield where, "is in training mode, with dropout"
    yield from _norm_act_conv(where, block.norm1, block.nonlinearity, block.conv1)
    yield from _norm_act_conv(where, block.norm2, block.nonlinearity, block.conv2)
    if block.conv_shortcut is not None:
        yield from _conv(f"{where}.conv_shortcut", block.conv_shortcut, 1)


def _norm_act_conv(where: str, norm: Any, act: Any, conv: Any) -> Iterator[Finding]:
    yield from _other_class(f"a norm of {where}", norm, nn.GroupNorm)
    yield from _other_class(f"the activation of {where}", act, nn.SiLU)
    yield from _conv(f"a convolution of {where}", conv, 3)


def _conv(where: str, conv: Any, size: int) -> Iterator[Finding]:
    yield from _other_class(where, conv, nn.Conv2d)
    padding = size // 2
    shape = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.padding_mode)
    if shape != ((size, size), (padding, padding), (1, 1), (1, 1), "zeros"):
        yield where, f"is no plain {size}x{size} convolution"


def _other_class(where: str, module: Any, known: type) -> Iterator[Finding]:
    """Report another class; subclasses are refused, too, as they may compute something else."""
    if type(module) is not known:
        yield where, f"is of class {type(module).__name__}, not {known.__name__}"


def _altered(where: str, module: Any, methods: tuple[str, ...]) -> Iterator[Finding]:
    """Report hooks and replaced methods, which strips would skip, and with them e.g. offloading."""
    if any(method in vars(module) for method in methods):
        yield where, "has a replaced method"
    if module._forward_hooks or module._forward_pre_hooks or "_hf_hook" in vars(module):
        yield where, "has a forward hook"
