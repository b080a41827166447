"""Dilated convolutions are those of a network that was built with them, and undilated ones are untouched."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rectified import BUILD, ask, changed, exact, forward
from vitrail.backbones.rectification.convolutions import Convolution, collected, convolutions, dilated, spread
from vitrail.backbones.rectification.dilated_convolution import DilatedConvolution, shrunk
from vitrail.backbones.rectification.module_hooks import attached
from vitrail.errors import CapabilityError
from vitrail.sampling.methods import load_method

close = torch.testing.assert_close  # in double precision


@pytest.fixture(params=BUILD)
def unet(request):
    return exact(request.param)


def rebuilt(unet, dilations):
    """A copy whose convolutions, by the beginning of their names, have a dilation of their own."""
    other = copy.deepcopy(unet)
    for name, conv in convolutions(other).items():
        conv.module.dilation = conv.module.padding = (dilations(name),) * 2
    return other


def at(*sites):
    return lambda name: next((d for site, d in sites if name.startswith(site)), 1)


# one layer


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4, 7])
def test_phases_are_the_dilated_convolution(stride, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride, 1).double().requires_grad_(False)
    for height, width in ((1, 4), (2, 9), (5, 5), (8, 16), (13, 6)):
        features = torch.randn(2, 3, height, width).double()
        sides = [math.ceil(side / stride) for side in (height, width)]
        ours = collected(conv(spread(features, dilation, stride)), dilation, stride, sides)
        close(ours, F.conv2d(features, conv.weight, conv.bias, stride, dilation, dilation))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dilation", "grown"), [(1.5, (17, 12)), (2.5, (16, 11)), (3.2, (16, 11))])
def test_a_dilation_between_whole_numbers_resizes_on_the_way(stride, dilation, grown):
    """13 x 9 features by ceil(d) / d = 4 / 3, 1.2 and 1.25."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride, 1).double().requires_grad_(False)
    features, holes = torch.randn(2, 3, 13, 9).double(), math.ceil(dilation)
    larger = F.interpolate(features, size=grown, mode="bilinear")
    answer = F.conv2d(larger, conv.weight, conv.bias, stride, holes, holes)
    expected = F.interpolate(answer, size=conv(features).shape[-2:], mode="bilinear")
    layer = nn.Sequential(conv)
    with attached(layer, [dilated(Convolution("0", conv, stride, 0), dilation)], "a test"):
        close(layer(features), expected)


# a network


def test_a_dilation_of_1_is_no_change(unet):
    ones = DilatedConvolution(sites=["down_blocks", "mid_block", "up_blocks"], dilations=[1, 1, 1])
    assert torch.equal(changed(unet, ones), ask(unet))
    assert torch.equal(changed(unet, DilatedConvolution(), height=8, width=8), ask(unet, 8, 8))


@pytest.mark.parametrize("size", [(16, 16), (13, 10)])
def test_a_whole_dilation_is_a_network_that_was_built_with_it(unet, size):
    ours = DilatedConvolution(sites=["down_blocks", "mid_block", "up_blocks.0"], dilations=[3, 2, 4])
    reference = rebuilt(unet, at(("down_blocks", 3), ("mid_block", 2), ("up_blocks.0", 4)))
    close(changed(unet, ours, height=size[0], width=size[1]), ask(reference, *size))
    assert (ask(reference, *size) - ask(unet, *size)).abs().max() > 1e-3


def test_downsamplers_and_upsamplers_are_sites():
    unet = exact("deep")
    sites = ["down_blocks.0.downsamplers", "up_blocks.1.upsamplers.0"]
    reference = rebuilt(unet, at((sites[0], 2), (sites[1], 3)))
    close(changed(unet, DilatedConvolution(sites=sites, dilations=[2, 3])), ask(reference))


def test_the_outer_convolutions_are_dilated_if_they_are_named():
    unet = exact("sd")
    reference = copy.deepcopy(unet)
    reference.conv_out.dilation = reference.conv_out.padding = (2, 2)
    close(changed(unet, DilatedConvolution(sites=["conv_out"], dilations=[2])), ask(reference))


def test_shortcuts_are_left_alone(unet):
    assert any("conv_shortcut" in name for name, _ in unet.named_modules())
    assert not any("shortcut" in name or name.startswith("conv_") for name in convolutions(unet))


@pytest.mark.parametrize(
    ("size", "dilation"), [((12, 8), 1.5), ((16, 8), 2.0), ((16, 16), 2.0), ((9, 20), 2.5), ((17, 17), 2)]
)
def test_without_dilations_it_follows_the_longer_side_of_the_view(size, dilation):
    size = {"height": size[0], "width": size[1]}
    given = DilatedConvolution(sites=["mid_block"], dilations=[dilation])
    follows = DilatedConvolution(sites=["mid_block"])
    assert torch.equal(changed(exact("sd"), follows, **size), changed(exact("sd"), given, **size))


def test_without_sites_all_blocks_below_the_highest_resolution_are_dilated():
    unet = exact("deep")
    below = at(*((site, 2) for site in ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1")))
    close(changed(unet, DilatedConvolution()), ask(rebuilt(unet, below)))


def test_it_falls_by_level():
    unet = exact("deep")
    whole = DilatedConvolution(sites=["*"], fall=1.0)
    levels = {"down_blocks.1": 2, "down_blocks.2": 3, "mid_block": 3, "up_blocks.0": 3, "up_blocks.1": 2}
    close(changed(unet, whole, height=24, width=24), ask(rebuilt(unet, at(*levels.items())), 24, 24))


def test_it_falls_over_the_steps():
    """Four at first; ceil(4 (35 - k) / 35) after, but never below 2."""
    assert [shrunk(4, range(35), k) for k in (0, 1, 8, 9, 17, 18, 26, 27, 34)] == [4, 4, 4, 3, 3, 2, 2, 2, 2]
    assert [shrunk(2.5, range(4), k) for k in range(4)] == [2.5, 2, 2, 2]
    assert [shrunk(1.0, range(4), k) for k in range(4)] == [1.0] * 4
    falling = DilatedConvolution(sites=["mid_block"], dilations=[4], progressive=True, start=0.2, until=0.8)
    expected = {1: 1, 2: 4, 3: 4, 4: 3, 5: 2, 7: 2, 8: 1}
    for index, dilation in expected.items():
        fixed = DilatedConvolution(sites=["mid_block"], dilations=[dilation])
        assert torch.equal(changed(exact("sd"), falling, index), changed(exact("sd"), fixed))


def test_the_published_list_for_4096_pixels_of_sdxl():
    """At the first step; of a U-Net of three levels, as SDXL's is."""
    unet, strategy = exact("deep"), load_method("scalecrafter-damped").stages[0].rectification[0]
    listed = {"down_blocks.2": 4, "mid_block": 4, "up_blocks.0": 4, "up_blocks.1": 3, "up_blocks.2": 2}
    close(changed(unet, strategy, height=32, width=32), ask(rebuilt(unet, at(*listed.items())), 32, 32))


def test_changes_of_one_layer_lie_inside_each_other():
    unet, (two, three) = exact("deep"), (DilatedConvolution(sites=["down_blocks.1"], dilations=[d]) for d in (2, 3))
    with two.apply(forward(unet)), three.apply(forward(unet)):
        ours = ask(unet)
    close(ours, ask(rebuilt(unet, at(("down_blocks.1", 6)))))


def test_lora_layers_are_dilated_as_a_whole():
    from peft import LoraConfig

    own = copy.deepcopy(exact("deep"))
    targets = ["conv1", "downsamplers.0.conv"]
    own.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    wide = DilatedConvolution(sites=["down_blocks", "mid_block"], dilations=[2, 3])
    plain, acting = ask(own), changed(own, wide)
    assert (plain - acting).abs().max() > 1e-3
    own.fuse_lora()
    close(changed(own, wide), acting)
    assert (changed(exact("deep"), wide) - acting).abs().max() > 1e-3


def test_half_precision_stays():
    unet = copy.deepcopy(exact("sd")).to(torch.bfloat16)
    view = torch.zeros(1, 4, 20, 20, dtype=torch.bfloat16)
    with torch.inference_mode(), DilatedConvolution().apply(forward(unet, 0, 20, 20)):
        assert unet(view, torch.tensor(5), torch.zeros(1, 3, 32, dtype=torch.bfloat16))[0].dtype == torch.bfloat16


# what is refused

PUBLISHED = ["down_blocks.2.downsamplers.0", "down_blocks.3", "mid_block", "up_blocks.0"]  # for SDXL; two are not there


def test_sites_that_are_missing_are_refused_unless_they_may_be():
    unet = exact("deep")
    with pytest.raises(
        CapabilityError, match=r"no 3x3 convolution.* at 'down_blocks.2.downsamplers.0'.*'down_blocks.3'"
    ):
        DilatedConvolution(sites=PUBLISHED).check(unet)
    lenient = DilatedConvolution(sites=PUBLISHED, dilations=[4, 4, 2, 3], skip_missing=True)
    lenient.check(unet)
    named = DilatedConvolution(sites=PUBLISHED[2:], dilations=[2, 3])
    assert torch.equal(changed(unet, lenient), changed(unet, named))
    with pytest.raises(CapabilityError, match="no 3x3 convolution"):
        DilatedConvolution(sites=["down_blocks.9"], skip_missing=True).check(unet)


@pytest.mark.parametrize(
    ("change", "value"),
    [("padding_mode", "circular"), ("dilation", (2, 2)), ("padding", (0, 0)), ("kernel_size", (1, 1))],
)
def test_convolutions_of_another_kind_are_no_places(change, value):
    own, site = copy.deepcopy(exact("sd")), "mid_block.resnets.0.conv1"
    setattr(own.get_submodule(site), change, value)
    with pytest.raises(
        CapabilityError, match=r"no 3x3 convolution with a border of one zero at 'mid_block.resnets.0.conv1'"
    ):
        DilatedConvolution(sites=[site]).check(own)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dilations": [2]}, r"a value for each of the 0 sites, got 1"),
        ({"sites": ["mid_block"], "dilations": [2, 2]}, r"a value for each of the 1 sites, got 2"),
        ({"sites": ["mid_block"], "dilations": [0.5]}, r"must be >= 1"),
        ({"sites": ["mid_block"], "dilations": [2], "fall": 1.0}, r"'fall' is for dilations that follow"),
        ({"sites": ["middle"]}, r"'middle' begins with no part of a network"),
        ({"branches": ["unconditional"]}, r"must be in"),
    ],
)
def test_options_that_cannot_be_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        DilatedConvolution(**options)


def test_sites_that_share_a_convolution_are_refused():
    with pytest.raises(CapabilityError, match=r"more than one site stands for mid_block.resnets.0.conv1"):
        DilatedConvolution(sites=["mid_block", "mid_block.resnets.0"], dilations=[2, 3]).check(exact("sd"))
