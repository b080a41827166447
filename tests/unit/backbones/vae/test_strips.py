"""Strips of a picture are the picture: equal to the whole decode, and bit for bit the same on any number of ranks."""

import copy
import functools
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from attrs import frozen
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tiny import NATIVE, in_double
from vitrail.backbones.adapters import StableDiffusion
from vitrail.backbones.vae.strip_check import check_strips, check_wrap
from vitrail.backbones.vae.strip_ops import Alone, Strips, Team, merge_moments, moments
from vitrail.backbones.vae.strips import LEAST_ROWS, cut_rows, decode_strips, gather_picture, scaled
from vitrail.comm import InProcess
from vitrail.errors import CapabilityError, ShapeError

WRAPS = ("x", "y", "xy")
SIZES = {"height": st.integers(1, 4 * NATIVE), "width": st.integers(1, 2 * NATIVE), "seed": st.integers(0, 2**32)}


@frozen
class RankExchange:
    """Strips' messages over a communicator."""

    communicator: object
    workers: int = 2

    def gather(self, mine, like, owner):
        out = {key: torch.empty_like(each, device="cpu") for key, each in like.items()}
        self.communicator.all_gather_into(out, mine, owner)
        return out


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_vae(**options):
    """With layers of its own: unequal widths, so shortcuts; an attention; random affine norms."""
    torch.manual_seed(1)
    table = {
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "block_out_channels": (4, 8, 12),
        "latent_channels": 4,
        "norm_num_groups": 2,
    }
    vae = AutoencoderKL(**{**table, **options}).eval()
    for parameter in vae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return vae


@pytest.fixture(scope="module")
def vae():
    return small_vae()


@pytest.fixture(scope="module")
def exact(vae):
    """The same in double precision, for laws that hold to rounding; pictures are float32 all the same."""
    return copy.deepcopy(vae).double()


close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-6)  # a few of the last bits of a picture


def on_ranks(vae, latents, count, native_size=NATIVE, wrap="none"):
    """The picture as each of several ranks puts it together."""

    def program(communicator):
        exchange = RankExchange(communicator)
        place = (communicator.rank, communicator.world_size)
        mine = decode_strips(vae, latents, native_size, exchange, *place, wrap=wrap)
        return gather_picture(vae, mine, latents, native_size, exchange, communicator.world_size)

    return InProcess().run(count, program)


def in_strips(vae, latents, native_size=NATIVE, wrap="none"):
    mine = decode_strips(vae, latents, native_size, Alone(), wrap=wrap)
    return gather_picture(vae, mine, latents, native_size, Alone())


def whole(vae, latents):
    with torch.no_grad():
        z = latents.to(vae.dtype) / vae.config.scaling_factor
        z = z if vae.config.shift_factor is None else z + vae.config.shift_factor
        return (vae.decode(z, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)


def cut(picture, rows, wrap="none"):
    """A tensor as the strips of one rank."""
    return Strips(Team(tuple(rows), 0, 1, Alone()), picture.shape[3], dict(enumerate(picture.split(rows, 2))), wrap)


def around(module):
    """The same with every padded convolution going round both axes, by torch's own means."""
    module = copy.deepcopy(module)
    for conv in (each for each in module.modules() if isinstance(each, nn.Conv2d) and each.padding != (0, 0)):
        conv.padding_mode = "circular"
    return module


def joined(strips):
    return torch.cat([strips.tensors[i] for i in sorted(strips.tensors)], 2)


@settings(max_examples=12)
@given(**SIZES)
def test_strips_add_up_to_the_whole_decode(exact, height, width, seed):
    latents = noise(1, 4, height, width, seed=seed)
    close(in_strips(exact, latents), whole(exact, latents))


@pytest.mark.parametrize("size", [(16, 16), (27, 9)])
def test_a_pipelines_own_decoder(pipe, size):
    pipe, latents = in_double(pipe), noise(1, 4, *size)
    close(in_strips(pipe.vae, latents), StableDiffusion.adopt(pipe).decode(latents).detach())


def test_one_strip_is_the_vae_itself(pipe):
    latents = noise(1, 4, NATIVE, 3 * NATIVE)
    expected = StableDiffusion.adopt(pipe).decode(latents)
    assert all(torch.equal(picture, expected) for picture in on_ranks(pipe.vae, latents, 2))


@pytest.mark.parametrize("height", [2 * NATIVE, 3 * NATIVE + 5])
def test_the_picture_is_bit_for_bit_the_same_on_any_number_of_ranks(vae, height):
    latents = noise(1, 4, height, 11)
    alone = in_strips(vae, latents)
    assert len(cut_rows(height, NATIVE)) < 9
    for count in (1, 2, 3, 5, 9):  # at last more ranks than strips
        assert all(torch.equal(picture, alone) for picture in on_ranks(vae, latents, count))


def test_a_rank_has_its_own_strips_only(vae):
    latents = noise(1, 4, 4 * NATIVE, 5)
    shares = InProcess().run(
        3, lambda communicator: decode_strips(vae, latents, NATIVE, RankExchange(communicator), communicator.rank, 3)
    )
    assert [sorted(share) for share in shares] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@given(height=st.integers(1, 600), native_size=st.integers(1, 128), world_size=st.integers(1, 12))
def test_the_cut_and_who_owns_what(height, native_size, world_size):
    rows = cut_rows(height, native_size)
    assert sum(rows) == height and min(rows) >= 1 and max(rows) - min(rows) <= 1
    assert (len(rows) == 1) == (height <= native_size) or height == 1
    least = cut_rows(height, native_size, 20)
    assert max(least) - min(least) <= 1 and (min(least) >= LEAST_ROWS or least == rows)
    assert len(cut_rows(height, native_size, 1)) in (2 * len(rows), len(least))
    team = Team(rows, 0, world_size, Alone())
    owners = [team.owner(strip) for strip in range(len(rows))]
    assert owners == sorted(owners) and owners[0] == 0 and owners[-1] < world_size
    loads = [owners.count(rank) for rank in range(world_size)]
    assert max(loads) - min(loads) <= 1


ROWS = st.lists(st.integers(1, 9), min_size=2, max_size=5)


@given(rows=ROWS, width=st.integers(1, 9), offset=st.sampled_from([0.0, 30.0, -1000.0]), seed=st.integers(0, 99))
def test_moments_of_strips_are_those_of_the_whole(rows, width, offset, seed):
    picture = noise(1, 6, sum(rows), width, seed=seed) + offset * torch.arange(6.0)[None, :, None, None]
    each = torch.stack([moments(strip, 3) for strip in picture.split(rows, 2)])
    mean, variance = merge_moments(each, rows)
    flat = picture.double().reshape(3, -1)
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance, flat.var(1, correction=0), rtol=2e-6, atol=1e-6)


@settings(max_examples=15)
@given(rows=ROWS, width=st.integers(1, 9), groups=st.sampled_from([1, 2, 6]), seed=st.integers(0, 99))
def test_norm_and_convolution_over_strips_are_those_over_the_whole(rows, width, groups, seed):
    """In double precision, where nothing but a wrong neighbour or statistic could be seen."""
    picture = 3 * noise(1, 6, sum(rows), width, seed=seed, dtype=torch.float64) + 5
    norm, conv = nn.GroupNorm(groups, 6, eps=1e-3).double(), nn.Conv2d(6, 4, 3, padding=1, groups=2).double()
    with torch.no_grad():
        norm.weight.copy_(noise(6, seed=seed))
        norm.bias.copy_(noise(6, seed=seed + 1))
        found = joined(cut(picture, rows).norm_act_conv(norm, conv))
        expected = conv(F.silu(norm(picture)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


@settings(max_examples=15)
@given(rows=ROWS, width=st.integers(1, 9), seed=st.integers(0, 99))
def test_upsampling_over_strips_is_that_over_the_whole(rows, width, seed):
    picture = noise(1, 6, sum(rows), width, seed=seed, dtype=torch.float64)
    conv = nn.Conv2d(6, 6, 3, padding=1, bias=False).double()
    with torch.no_grad():
        strips = cut(picture, rows).upsample_conv(conv)
        expected = conv(F.interpolate(picture, scale_factor=2.0, mode="nearest"))
    assert strips.width == 2 * width
    torch.testing.assert_close(joined(strips), expected, rtol=0, atol=1e-12)


def test_the_output_scale_of_a_residual_block_counts(vae):
    block = copy.deepcopy(vae.decoder.up_blocks[1].resnets[0]).double()
    block.output_scale_factor = 1.7
    picture = noise(1, 12, 14, 6, dtype=torch.float64)
    with torch.no_grad():
        found = joined(cut(picture, (5, 6, 3)).resnet(block))
        torch.testing.assert_close(found, block(picture, None), rtol=0, atol=1e-11)


def test_latents_are_scaled_and_shifted_as_the_model_says():
    vae = small_vae(scaling_factor=0.4, shift_factor=0.7, use_post_quant_conv=False, mid_block_add_attention=False)
    vae, latents = vae.double(), noise(1, 4, 20, 9)
    close(in_strips(vae, latents), whole(vae, latents))


def test_latents_with_a_mean_and_a_deviation_of_their_own():
    statistics = {"latents_mean": (0.1, -0.2, 0.3, 0.4), "latents_std": (0.5, 1.5, 2.0, 1.0)}
    vae, latents = small_vae(scaling_factor=0.4, **statistics), noise(1, 4, 20, 9)
    mean, std = (torch.tensor(each).view(1, 4, 1, 1) for each in statistics.values())
    expected = latents * std / 0.4 + mean
    assert torch.equal(scaled(vae, latents), expected)
    exact = vae.double()
    with torch.no_grad():
        whole_picture = (exact.decode(scaled(exact, latents)).sample.float() / 2 + 0.5).clamp(0, 1)
    close(in_strips(exact, latents), whole_picture)


@pytest.mark.parametrize("wrap", WRAPS)
@settings(max_examples=8)
@given(**SIZES, down=st.integers(0, 40), right=st.integers(0, 40))
def test_rolled_latents_are_decoded_to_the_rolled_picture(exact, wrap, height, width, seed, down, right):
    latents = noise(1, 4, height, width, seed=seed)
    down, right = (down if "y" in wrap else 0), (right if "x" in wrap else 0)
    expected = in_strips(exact, latents, wrap=wrap).roll((4 * down, 4 * right), (2, 3))
    close(in_strips(exact, latents.roll((down, right), (2, 3)), wrap=wrap), expected)


@pytest.mark.parametrize("height", [NATIVE, 27])
@pytest.mark.parametrize("options", [{}, {"use_post_quant_conv": False, "shift_factor": 0.3, "scaling_factor": 1.5}])
def test_a_picture_that_goes_round_both_axes_is_that_of_circular_convolutions(height, options):
    vae, latents = small_vae(**options).double(), noise(1, 4, height, 9)
    found = in_strips(vae, latents, wrap="xy")
    close(found, whole(around(vae), latents))
    assert (found - whole(vae, latents)).abs().max() > 0.01


@pytest.mark.parametrize("axis", ["x", "y"])
def test_the_axis_that_does_not_wrap_keeps_its_edges(exact, axis):
    """With latents and kernels mirrored about the diagonal the axes change places, and so does what wraps."""
    latents, other = noise(1, 4, 20, 20), {"x": "y", "y": "x"}[axis]
    mirrored = copy.deepcopy(exact)
    for conv in (each for each in mirrored.modules() if isinstance(each, nn.Conv2d)):
        conv.weight.data = conv.weight.data.mT.contiguous()
    found = in_strips(exact, latents, wrap=axis)
    close(in_strips(mirrored, latents.mT, wrap=other).mT, found)
    for wrap in {"none", "x", "y", "xy"} - {axis}:
        assert (in_strips(exact, latents, wrap=wrap) - found).abs().max() > 0.01


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("height", [NATIVE, 2 * NATIVE + 3])
def test_around_the_edges_it_is_bit_for_bit_the_same_on_any_number_of_ranks(vae, wrap, height):
    latents = noise(1, 4, height, 11)
    alone = in_strips(vae, latents, wrap=wrap)
    for count in (1, 2, 3, 6):
        assert all(torch.equal(picture, alone) for picture in on_ranks(vae, latents, count, wrap=wrap))


@settings(max_examples=15)
@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=5), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_layers_around_the_edges_are_circular_ones(rows, width, seed):
    picture = 3 * noise(1, 6, sum(rows), width, seed=seed, dtype=torch.float64) + 5
    norm, conv = nn.GroupNorm(2, 6).double(), nn.Conv2d(6, 6, 3, padding=1, bias=False).double()
    plain = around(conv)
    with torch.no_grad():
        pairs = [
            (cut(picture, rows, "xy").conv(conv), plain(picture)),
            (cut(picture, rows, "xy").norm_act_conv(norm, conv), plain(F.silu(norm(picture)))),
            (cut(picture, rows, "xy").upsample_conv(conv), plain(F.interpolate(picture, scale_factor=2.0))),
        ]
    for found, expected in pairs:
        torch.testing.assert_close(joined(found), expected, rtol=0, atol=1e-11)


def test_half_precision_around_the_edges(vae):
    half, latents = copy.deepcopy(vae).to(torch.bfloat16), noise(1, 4, 20, 12)
    error = (in_strips(half, latents, wrap="xy") - in_strips(vae, latents, wrap="xy")).abs().mean()
    assert 0 < error < 1.5 * (whole(half, latents) - whole(vae, latents)).abs().mean()


@pytest.mark.parametrize("height", [NATIVE, 2 * NATIVE])
def test_what_is_infinite_is_not_taken_for_white(vae, height):
    broken = copy.deepcopy(vae)
    broken.decoder.conv_out.bias.data.fill_(torch.inf)
    assert in_strips(broken, noise(1, 4, height, 4)).isnan().all()


def test_half_precision_is_as_near_to_full_as_the_whole_decode_is(vae):
    half, latents = copy.deepcopy(vae).to(torch.bfloat16), noise(1, 4, 20, 12)
    full = whole(vae, latents)
    error = (in_strips(half, latents) - full).abs().mean()
    assert in_strips(half, latents).dtype == torch.float32
    assert 0 < error < 1.5 * (whole(half, latents) - full).abs().mean()


def test_the_layout_of_the_weights_does_not_matter(vae, exact):
    last, latents = torch.channels_last, noise(1, 4, 20, 9)
    close(in_strips(copy.deepcopy(exact).to(memory_format=last), latents), whole(exact, latents))
    other = copy.deepcopy(vae).to(memory_format=last)
    pictures = [in_strips(other, latents), *on_ranks(other, latents, 3)]
    assert all(torch.equal(a, b) for a, b in pairwise(pictures))


def test_the_vae_is_left_as_it_was(vae):
    def look():
        attributes = {name: sorted(vars(module)) for name, module in vae.named_modules()}
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in vae.modules()]
        return attributes, hooks, {name: value.clone() for name, value in vae.state_dict().items()}

    latents = noise(1, 4, 2 * NATIVE, 8)
    before, kept = look(), latents.clone()
    in_strips(vae, latents)
    after = look()
    assert before[:2] == after[:2] and torch.equal(latents, kept)
    assert all(torch.equal(value, after[2][name]) for name, value in before[2].items())


def replace(path, value):
    def change(vae):
        where, _, name = path.rpartition(".")
        setattr(vae.get_submodule(where), name, value)

    return change


class OwnConv(nn.Conv2d):
    """Could do anything."""


def with_hook(vae):
    vae.decoder.up_blocks[0].resnets[0].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (replace("decoder.conv_norm_out", nn.InstanceNorm2d(4)), "a norm of decoder is of class InstanceNorm2d"),
        (replace("decoder.up_blocks.1.resnets.0.nonlinearity", nn.GELU()), r"up_blocks.1.resnets.0 is of class GELU"),
        (replace("decoder.conv_out", OwnConv(4, 3, 3, padding=1)), "of class OwnConv, not Conv2d"),
        (replace("decoder.conv_out", nn.Conv2d(4, 3, 5, padding=2)), "is no plain 3x3 convolution"),
        (replace("decoder.up_blocks.0.upsamplers.0.use_conv", False), "upsamplers.0 does not repeat"),
        (replace("decoder.up_blocks.0.resnets.0.time_embedding_norm", "scale_shift"), "resnets.0 has a time embedding"),
        (replace("decoder.up_blocks.0.forward", lambda hidden, temb: hidden), "up_blocks.0 has a replaced method"),
        (with_hook, r"decoder.up_blocks.0.resnets.0 has a forward hook"),
        (lambda vae: vae.enable_tiling(), "the vae is set to decode in tiles"),
    ],
)
def test_other_layers_are_refused_by_name(vae, change, told):
    other = copy.deepcopy(vae)
    change(other)
    with pytest.raises(CapabilityError, match=told):
        decode_strips(other, noise(1, 4, 2 * NATIVE, 4), NATIVE, Alone())
    check_strips(vae)


def test_attention_between_the_up_blocks_is_refused():
    table = {"up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D")}
    with pytest.raises(CapabilityError, match=r"decoder.up_blocks.1 is of class AttnUpDecoderBlock2D"):
        check_strips(small_vae(**table))


def test_several_pictures_are_refused(vae):
    with pytest.raises(ShapeError, match="one picture"):
        decode_strips(vae, noise(2, 4, 8, 8), NATIVE, Alone())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (replace("decoder.conv_in", OwnConv(4, 12, 3, padding=1)), "decoder.conv_in is of class OwnConv, not Conv2d"),
        (replace("post_quant_conv", nn.Conv2d(4, 4, 3, padding=1)), "post_quant_conv is no plain 1x1"),
        (replace("decoder.mid_block.resnets.1.nonlinearity", nn.GELU()), "mid_block.resnets.1 is of class GELU"),
        (replace("decoder.mid_block.attentions.0", nn.Identity()), "mid_block.attentions.0 is of class Identity"),
        (with_hook, r"decoder.up_blocks.0.resnets.0 has a forward hook"),
        (lambda vae: vae.enable_tiling(), "the vae is set to decode in tiles"),
    ],
)
def test_layers_that_may_not_go_round_are_refused_by_name(vae, change, told):
    other = copy.deepcopy(vae)
    change(other)
    for call in (lambda: check_wrap(other), lambda: decode_strips(other, noise(1, 4, 4, 4), 8, Alone(), wrap="x")):
        with pytest.raises(CapabilityError, match=rf"{told}.*use wrap 'none'"):
            call()
    check_wrap(vae)
