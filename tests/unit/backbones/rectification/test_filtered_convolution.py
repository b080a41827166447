"""Filtered convolutions are those of a network of layers written out, also of a row and its copy in one batch."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified import BUILD, ask, built, changed, exact
from tiny import NATIVE
from vitrail.backbones.rectification.convolutions import convolutions
from vitrail.backbones.rectification.filtered_convolution import FilteredConvolution, fallen, whole_dilation
from vitrail.backbones.rectification.low_pass import LowPass
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.micro_batch import MicroBatch
from vitrail.core.method.protocols import Forward
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError
from vitrail.sampling.methods import load_method
from vitrail.testing import make_step

close = torch.testing.assert_close  # in double precision
SIDE = 2 * NATIVE


@pytest.fixture(params=BUILD)
def unet(request):
    return exact(request.param)


class ByEntry(nn.Module):
    """A convolution that filters and dilates every entry of its input in its own way."""

    def __init__(self, conv, ways):
        super().__init__()
        self.conv, self.ways = conv, ways

    def forward(self, features):
        c, found = self.conv, []
        for number, (low_pass, dilation) in enumerate(self.ways):
            shown = low_pass(features[number : number + 1])
            found.append(F.conv2d(shown, c.weight, c.bias, c.stride, dilation, dilation))
        return torch.cat(found)


def written_out(unet, ways, lending=False, padded=1.0):
    """A copy of a network with such layers; with ``lending`` entry 0 has queries and keys of entry 1.

    Ways are (soft, dilation, taps); before a stride less of the spectrum aliases, and upsamplers are not filtered.
    """
    other = copy.deepcopy(unet)
    for name, conv in convolutions(other).items():
        if conv.halvings > 0:
            filters = [
                (nn.Identity() if "upsamplers" in name else LowPass(d / conv.stride, 0.6, soft, padded), taps)
                for soft, d, taps in ways
            ]
            parent, _, last = name.rpartition(".")
            setattr(other.get_submodule(parent), last, ByEntry(conv.module, filters))
    for name, module in other.named_modules():
        if lending and name.endswith("attn1"):
            for each in (module.to_q, module.to_k):
                each.register_forward_hook(lambda _, args, output: output[[1, 1]])
    return other


def forward(network, branches, index=0, height=SIDE, width=SIDE):
    views = [View(Span(0, height), Span(0, width))] * len(branches)
    rows = MicroBatch(torch.zeros(len(branches), 4, height, width), branches=branches, views=views)
    return Forward(network=network, step=make_step(index), rows=rows, native_size=NATIVE, streams=Streams(0))


@torch.inference_mode()
def question(network, count, height=SIDE, width=SIDE):
    """Output of a batch of equal rows."""
    streams, config, dtype = Streams(0), network.config, network.dtype
    added = {}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        text = streams.normal((1, pooled), "pooled").to(dtype).repeat(count, 1)
        added = {"text_embeds": text, "time_ids": torch.full((count, 6), 64.0, dtype=dtype)}
    latents = streams.normal((1, 4, height, width), "latents").to(dtype).repeat(count, 1, 1, 1)
    text = streams.normal((1, 3, config.cross_attention_dim), "text").to(dtype).repeat(count, 1, 1)
    return network(latents, torch.tensor(5), text, added_cond_kwargs=added, return_dict=False)[0]


@pytest.mark.parametrize("side", [NATIVE, NATIVE - 2])
@pytest.mark.parametrize("name", BUILD)
def test_views_of_the_training_size_are_left_alone_bit_for_bit(name, side):
    sides = {"height": side, "width": side}
    assert torch.equal(changed(built(name), FilteredConvolution(), **sides), ask(built(name), **sides))


def test_a_conditional_row_has_the_attention_of_a_copy_that_is_filtered_in_full(unet):
    """Three times the side: taps 3 apart for the copy, ceil(3 / 1.5) = 2 for the row that is returned."""
    reference = written_out(unet, [(True, 3, 2), (False, 3, 3)], lending=True)
    with FilteredConvolution().apply(forward(unet, ["cond"], height=3 * NATIVE, width=3 * NATIVE)):
        ours = question(unet, 1, 3 * NATIVE, 3 * NATIVE)
    close(ours, question(reference, 2, 3 * NATIVE, 3 * NATIVE)[:1])
    alone = question(written_out(unet, [(True, 3, 2)]), 1, 3 * NATIVE, 3 * NATIVE)
    assert (ours - alone).abs().max() > 1e-6, "the copy's attention counts for nothing"


def test_the_other_rows_are_filtered_in_full_and_keep_their_own_attention(unet):
    reference = written_out(unet, [(False, 2, 2)])
    with FilteredConvolution().apply(forward(unet, ["uncond", "cond"])):
        close(question(unet, 2)[:1], question(reference, 1))
    with FilteredConvolution(guided=False).apply(forward(unet, ["cond"])):
        close(question(unet, 1), question(reference, 1))


def test_views_that_are_no_multiple_are_filled_up_for_the_filter(unet):
    """13 x 13 cells of 8: a dilation of 2, and filters of 16 x 16 cells and their halves."""
    reference = written_out(unet, [(False, 2, 2)], padded=16 / 13)
    with FilteredConvolution(guided=False).apply(forward(unet, ["cond"], height=13, width=13)):
        close(question(unet, 1, 13, 13), question(reference, 1, 13, 13))


def test_a_copy_is_one_row_more_in_the_forward_and_in_the_plan():
    unet, seen = built("sd"), []
    handle = unet.conv_in.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    strategy, cells = FilteredConvolution(), SIDE**2
    try:
        for index in (0, 9):
            for branches in (["uncond"], ["cond"], ["uncond", "cond"], ["cond", "cond"]):
                asked = forward(unet, branches, index)
                with strategy.apply(asked):
                    assert len(question(unet, len(branches))) == len(branches)
                more = [strategy.further_rows(asked.step, branch, cells, NATIVE**2) for branch in branches]
                assert seen.pop() == len(branches) + sum(more)
                assert sum(more) == (branches.count("cond") if index == 0 else 0)
    finally:
        handle.remove()


def test_inputs_of_every_row_are_copied_with_it_and_others_are_not():
    """A control network's residuals have an entry for each row; masks of attention are those of the whole call."""
    unet = built("sd")
    shapes = [(32, SIDE), (32, SIDE), (32, SIDE // 2), (32, SIDE // 2)]
    down = [torch.zeros(1, channels, side, side) for channels, side in shapes]
    added = {
        "down_block_additional_residuals": tuple(down),
        "mid_block_additional_residual": torch.zeros(1, 32, SIDE // 2, SIDE // 2),
        "cross_attention_kwargs": {"scale": 1.0},
    }
    draw = Streams(0).normal
    call = (draw((1, 4, SIDE, SIDE), "latents"), torch.tensor(5), draw((1, 3, 32), "text"))
    with torch.inference_mode(), FilteredConvolution().apply(forward(unet, ["cond"])):
        assert torch.equal(unet(*call, **added).sample, unet(*call)[0])


def test_the_dilation_falls_by_a_line_as_published():
    """SDXL at 4 times the side: whole for 20 steps of 50, then less for 15."""
    falling = range(20, 35)
    assert [fallen(4, falling, step) for step in (0, 19, 20, 25, 34)] == pytest.approx([4, 4, 4, 3, 1.2])
    strategy = FilteredConvolution()
    assert [math.ceil(fallen(2, falling, step)) for step in range(35)] == [2] * 35
    assert (strategy.full, strategy.until, strategy.floor) == (0.4, 0.7, 0.6)


@pytest.mark.parametrize(
    ("pixels", "dilation"),
    [((1024, 1024), 1), ((2048, 2048), 2), ((2560, 2560), 3), ((4096, 2048), 3), ((2048, 1024), 2), ((4096, 4096), 4)],
)
def test_the_dilation_is_that_of_the_authors_training_sizes(pixels, dilation):
    assert whole_dilation(pixels[0] * pixels[1] // 64, 128 * 128) == dilation


def test_layers_of_sdxl_are_the_published_ones():
    """21 of a network with its blocks: four of the last down block, four in the middle, seven and six on the way up."""
    (strategy,), unet = load_method("fouriscale").stages[0].rectification, built("deep")
    with strategy.apply(forward(unet, ["cond"])):
        hooked = [n for n, m in unet.named_modules() if m._forward_pre_hooks and isinstance(m, nn.Conv2d)]
        question(unet, 1)
    blocks = ("down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1")
    assert [sum(name.startswith(block) for name in hooked) for block in blocks] == [4, 4, 7, 6]
    assert len(hooked) == 21 and [n for n in hooked if "samplers" in n] == ["up_blocks.0.upsamplers.0.conv"]


def test_fused_projections_are_refused_unless_no_copy_lends_any():
    unet = copy.deepcopy(built("sd"))
    unet.fuse_qkv_projections()
    with pytest.raises(CapabilityError, match=r"filtered-convolution lends queries and keys, but .* are fused; undo"):
        FilteredConvolution().check(unet)
    FilteredConvolution(guided=False).check(unet)


def test_sites_that_are_not_there_are_refused_or_left_out():
    with pytest.raises(CapabilityError, match=r"there is no 3x3 convolution .* at 'down_blocks\.7'"):
        FilteredConvolution(sites=["down_blocks.7", "mid_block"]).check(built("sd"))
    with pytest.raises(ValueError, match="begins with no part of a network"):
        FilteredConvolution(sites=["upblocks.0"])
    left = FilteredConvolution(sites=["down_blocks.7", "mid_block"], skip_missing=True)
    assert torch.equal(changed(built("sd"), left), changed(built("sd"), FilteredConvolution(sites=["mid_block"])))
