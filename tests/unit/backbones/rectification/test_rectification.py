"""What attention-scale and freeu compute."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectified import BUILD, TWO, ask, built, changed, forward
from tiny import NATIVE
from vitrail.backbones.rectification.attention_scale import AttentionScale, factor, self_attentions
from vitrail.backbones.rectification.freeu import FreeU, amplified, damped, decoder_entries
from vitrail.backbones.rectification.module_hooks import Hook, attached
from vitrail.core.schedule.streams import Streams


@pytest.fixture(params=BUILD)
def unet(request):
    """Shared by the tests of a session: what one leaves in it is found by the others."""
    return built(request.param)


@pytest.fixture
def own():
    """A U-Net for one test alone."""
    return copy.deepcopy(built("deep"))


# what attention-scale computes


@pytest.mark.parametrize(("native", "expected"), [(64 * 64, (1.080, 1.124, 1.155)), (32 * 32, (1.095, 1.148, 1.183))])
def test_factors_of_sdxl(native, expected):
    assert [round(factor(native * scale**2, native), 3) for scale in (2, 3, 4)] == list(expected)


@given(tokens=st.integers(2, 10**6), more=st.integers(1, 10**6))
def test_factor_is_one_at_the_training_size_and_grows(tokens, more):
    assert factor(tokens, tokens) == 1.0
    assert factor(tokens + more, tokens) > 1 > factor(tokens, tokens + more)


@pytest.mark.parametrize("size", [(NATIVE, NATIVE), (2 * NATIVE, NATIVE // 2), (7, 7), (13, 13)])
def test_tokens_of_a_layer_are_what_its_forward_sees(unet, size):
    seen = {}
    layers = list(self_attentions(unet))

    def note(name):
        return lambda module, args, kwargs, output: seen.update({name: output.shape[1]})

    with attached(unet, [Hook(each.name, each.attention.to_q, after=note(each.name)) for each in layers], "a test"):
        ask(unet, *size)
    if size[0] == size[1]:
        assert seen == {each.name: each.tokens(size[0]) for each in layers}
    else:
        assert seen == {each.name: each.tokens(NATIVE) for each in layers}


@torch.inference_mode()
def test_queries_times_the_factor_are_attention_with_the_scaled_softmax(unet):
    unet = copy.deepcopy(unet).to(torch.float64)
    layer = next(self_attentions(unet))
    attention, native = layer.attention, layer.tokens(NATIVE)
    hidden = Streams(3).normal((2, 4 * native, attention.to_q.in_features), "hidden").double()
    with AttentionScale(sites=[layer.name]).apply(forward(unet)):
        ours = attention(hidden)
    q, k, v = (
        project(hidden).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    scale = math.sqrt(math.log(4 * native) / math.log(native) / q.shape[-1])
    by_hand = (q @ k.transpose(-1, -2) * scale).softmax(-1) @ v
    torch.testing.assert_close(ours, attention.to_out[0](by_hand.transpose(1, 2).flatten(2)))
    assert not torch.equal(ours, attention(hidden))


def test_without_self_queries_there_is_nothing_to_scale(own):
    """Cross-attention, and all the rest, is left alone."""
    for name, module in own.named_modules():
        if name.endswith("attn1.to_q"):
            module.weight.data.zero_()
    assert torch.equal(changed(own, AttentionScale()), ask(own))


@pytest.mark.parametrize("size", [(NATIVE, NATIVE), (2 * NATIVE, NATIVE // 2), (NATIVE // 2, 2 * NATIVE)])
def test_views_of_as_many_tokens_as_in_training_are_left_as_they_are(unet, size):
    plain = ask(unet, *size)
    assert torch.equal(changed(unet, AttentionScale(), height=size[0], width=size[1]), plain)


# what freeu computes


@pytest.mark.parametrize("size", [(NATIVE, NATIVE), (2 * NATIVE, 2 * NATIVE), (12, 10), (11, 9)])
def test_freeu_is_that_of_diffusers(unet, size):
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    try:
        theirs = ask(unet, *size)
    finally:
        unet.disable_freeu()
    ours = changed(unet, FreeU(**TWO), height=size[0], width=size[1])
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, ask(unet, *size))


@given(seed=st.integers(0, 2**32), s=st.floats(0, 2), height=st.integers(1, 12), width=st.integers(1, 12))
def test_damping_is_linear_in_s_and_off_at_one(seed, s, height, width):
    skip = Streams(seed).normal((1, 2, height, width), "skip")
    torch.testing.assert_close(damped(skip, s), s * skip + (1 - s) * damped(skip, 0.0), rtol=1e-4, atol=1e-5)
    assert damped(skip, 1.0) is skip


def test_damping_takes_the_mean_and_leaves_the_finest():
    mean = torch.full((1, 1, 12, 10), 2.0)
    finest = mean * (-1.0) ** (torch.arange(12)[:, None] + torch.arange(10))
    torch.testing.assert_close(damped(mean + finest, 0.25), 0.25 * mean + finest)
    half = damped((mean + finest).bfloat16(), 0.25)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), 0.25 * mean + finest, rtol=1e-2, atol=1e-2)


@given(seed=st.integers(0, 2**32), b=st.floats(1.01, 2), gain=st.floats(0.1, 10))
def test_v2_multiplies_by_b_where_the_mean_is_highest_and_by_one_where_it_is_lowest(seed, b, gain):
    hidden = Streams(seed).normal((2, 6, 5, 7), "hidden")
    out = amplified(hidden, b, "v2")
    ratio, mean = (out / hidden)[:, :3], hidden.mean(1).flatten(1)
    for one, where in zip(ratio.flatten(2), mean, strict=True):
        torch.testing.assert_close(one[:, where.argmax()], torch.full((3,), b), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one[:, where.argmin()], torch.ones(3), rtol=1e-3, atol=1e-4)
    assert torch.equal(out[:, 3:], hidden[:, 3:])
    torch.testing.assert_close(amplified(gain * hidden, b, "v2"), gain * out, rtol=1e-3, atol=1e-3)


def test_v2_of_flat_features_is_off():
    flat = torch.ones(1, 4, 3, 3)
    assert torch.equal(amplified(flat, 1.5, "v2"), flat)
    assert torch.equal(amplified(flat, 1.5, "v1")[:, :2], 1.5 * flat[:, :2])


def test_sites_may_be_single_blocks(unet):
    """A block is its residual blocks, each with the block's values."""
    parts = [name for name in decoder_entries(unet) if name.startswith("up_blocks.1.")]
    whole = FreeU(sites=["up_blocks.1"], b=[1.4], s=[0.2])
    each = FreeU(sites=parts, b=[1.4] * len(parts), s=[0.2] * len(parts))
    assert torch.equal(changed(unet, whole), changed(unet, each))


def test_users_own_freeu_goes_on_and_adds_up(own):
    """By powers of two, which do not round."""
    own.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    theirs = ask(own)
    both = changed(own, FreeU(b=[2, 0.5], s=[1, 1]))
    assert torch.equal(ask(own), theirs)
    own.enable_freeu(s1=0.9, s2=0.2, b1=1.3 * 2, b2=1.4 * 0.5)
    assert torch.equal(both, ask(own)) and not torch.equal(both, theirs)
