"""U-Nets that are asked with and without a change inside, and all that a change could leave behind."""

import copy
import functools

import torch
from diffusers import UNet2DConditionModel

from tiny import NATIVE
from tiny_families import FAMILIES
from vitrail.backbones.rectification.attention_scale import AttentionScale
from vitrail.backbones.rectification.dilated_convolution import DilatedConvolution
from vitrail.backbones.rectification.freeu import FreeU
from vitrail.backbones.rectification.raunet import RAUNet
from vitrail.backbones.rectification.window_attention import WindowAttention
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.micro_batch import MicroBatch
from vitrail.core.method.protocols import Forward
from vitrail.core.schedule.streams import Streams
from vitrail.testing import make_step


def deep_unet():
    """Three levels as in SDXL: attention below the first, several layers a block."""
    torch.manual_seed(5)
    return UNet2DConditionModel(
        sample_size=NATIVE,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 8),
        cross_attention_dim=32,
    ).eval()


BUILD = {name: lambda name=name: FAMILIES[name]().unet for name in ("sd", "sd2", "sdxl")} | {"deep": deep_unet}
TWO = {"sites": ["up_blocks.0", "up_blocks.1"], "b": [1.3, 1.4], "s": [0.9, 0.2]}
STRATEGIES = [
    AttentionScale(),
    FreeU(),
    FreeU(version="v2", **TWO),
    DilatedConvolution(),
    RAUNet(),
    RAUNet(form="pool"),
    WindowAttention(),
]


@functools.cache
def built(name):
    """A real U-Net, built once."""
    return BUILD[name]()


@functools.cache
def exact(name):
    """The same in double precision, for laws that hold to rounding: a network makes much of how it rounds."""
    return copy.deepcopy(built(name)).to(torch.float64)


@torch.inference_mode()
def ask(network, height=2 * NATIVE, width=2 * NATIVE, width_of_text=None, **added):
    """The output for random latents and text, in the network's own type."""
    streams, config = Streams(0), network.config

    def draw(name, *shape):
        return streams.normal(shape, name).to(network.dtype)

    text = draw("text", 1, 3, width_of_text or config.cross_attention_dim)
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added |= {"text_embeds": draw("pooled", 1, pooled), "time_ids": torch.full((1, 6), 64.0)}
    return network(draw("latents", 1, 4, height, width), torch.tensor(5), text, added_cond_kwargs=added)[0]


def forward(network, index=0, height=2 * NATIVE, width=2 * NATIVE):
    view = View(Span(0, height), Span(0, width))
    rows = MicroBatch(torch.zeros(1, 4, height, width), branches=["cond"], views=[view])
    return Forward(network=network, step=make_step(index), rows=rows, native_size=NATIVE, streams=Streams(0))


def changed(network, strategy, index=0, height=2 * NATIVE, width=2 * NATIVE, **question):
    with strategy.apply(forward(network, index, height, width)):
        return ask(network, height, width, **question)
