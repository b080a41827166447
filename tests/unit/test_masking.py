"""Masks: a soft weight in [0, 1] that follows the map, and says so when there is none to follow."""

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tiny import NATIVE
from vitrail.backbones.attention import capture_maps, cross_attentions, layer_shape
from vitrail.backbones.stable_diffusion import StableDiffusionBackbone
from vitrail.core.protocols import AttentionRequest, Predicted
from vitrail.core.streams import Streams
from vitrail.errors import CapabilityError
from vitrail.plugins.masking import STOP_WORDS, NoMask, ParameterFreeAttention, UpBlockAttention
from vitrail.testing import make_prediction, make_step

SEEDS = st.integers(0, 2**32)
SOURCES = [UpBlockAttention, ParameterFreeAttention]
SIDE = 8


def heat_of(seed):
    return Streams(seed).uniform((1, 1, SIDE, SIDE), "heat") / 7


def ask(source, index=0, seed=0, state=None, heat=None, **changes):
    """The mask for a key view of random latents and a random map."""
    key = make_prediction((1, 4, SIDE, SIDE), make_step(index, **changes), seed)
    predicted = Predicted(key.model_output, heat_of(seed) if heat is None else heat)
    return source.mask(key.step, key, predicted, state)


@pytest.mark.parametrize("cls", SOURCES)
@given(seed=SEEDS, clip=st.floats(0, 0.4), ramp_steps=st.integers(1, 5), index=st.integers(0, 9))
def test_a_mask_is_a_weight_of_the_key_views_cells(cls, seed, clip, ramp_steps, index):
    mask, _ = ask(cls(clip=clip, ramp_steps=ramp_steps), index, seed)
    full = min(1.0, (index + 1) / ramp_steps)
    assert mask.shape == (1, 1, SIDE, SIDE)
    assert float(mask.min()) == 0
    assert float(mask.max()) == pytest.approx(full)


@given(seed=SEEDS, gain=st.floats(0.01, 100), offset=st.floats(0, 1))
def test_each_step_is_normalised_on_its_own(seed, gain, offset):
    plain, _ = ask(UpBlockAttention(), heat=heat_of(seed))
    stretched, _ = ask(UpBlockAttention(), heat=gain * (heat_of(seed) + offset))
    torch.testing.assert_close(plain, stretched, rtol=1e-3, atol=1e-3)


@given(seed=SEEDS)
def test_a_mask_follows_the_order_of_its_map(seed):
    heat = heat_of(seed)
    mask, _ = ask(UpBlockAttention(clip=0.0), heat=heat)
    torch.testing.assert_close(mask, (heat - heat.min()) / (heat.max() - heat.min()))
    clipped, _ = ask(UpBlockAttention(clip=0.1), heat=heat)
    assert (clipped == 0).sum() >= 6
    assert (clipped == 1).sum() >= 6


def test_pictures_of_a_batch_are_normalised_apart():
    heat = torch.cat([heat_of(0), 100 * heat_of(1)])
    both, _ = ask(UpBlockAttention(), heat=heat)
    torch.testing.assert_close(both[:1], ask(UpBlockAttention(), heat=heat_of(0))[0])
    torch.testing.assert_close(both[1:], ask(UpBlockAttention(), heat=heat_of(1))[0])


@pytest.mark.parametrize("ema", [0.0, 0.5, 0.9])
def test_the_moving_average_weighs_earlier_maps(ema):
    source, state, average = UpBlockAttention(ema=ema), UpBlockAttention().init(), None
    for index in range(4):
        heat = heat_of(index)
        average = heat if average is None else ema * average + (1 - ema) * heat
        mask, state = ask(source, index, state=state, heat=heat)
        torch.testing.assert_close(mask, ask(UpBlockAttention(), heat=average)[0])


def test_the_ramp_counts_steps_of_the_stage():
    full, _ = ask(UpBlockAttention())
    for stage_step, share in ((0, 0.25), (1, 0.5), (3, 1.0), (7, 1.0)):
        mask, _ = ask(UpBlockAttention(ramp_steps=4), 9, stage_step=stage_step)
        torch.testing.assert_close(mask, share * full)


def warned(logs):
    return [(log["step"], log["log_level"]) for log in logs if log["event"] == "mask.degenerate"]


@pytest.mark.parametrize("heat", [torch.full((1, 1, SIDE, SIDE), 0.1), torch.zeros(1, 1, SIDE, SIDE)])
def test_a_flat_map_means_everywhere_with_a_warning(heat):
    with capture_logs() as logs:
        mask, _ = ask(UpBlockAttention(), index=3, heat=heat)
    assert mask is None
    assert warned(logs) == [(3, "warning")]


def test_flat_latents_mean_everywhere_with_a_warning():
    step = make_step(2, prediction_type="sample")
    key = make_prediction((1, 4, SIDE, SIDE), step)
    flat = evolve(key, model_output=torch.ones_like(key.model_output))
    with capture_logs() as logs:
        mask, _ = ParameterFreeAttention().mask(step, flat, Predicted(flat.model_output), None)
    assert mask is None
    assert warned(logs) == [(2, "warning")]


@pytest.mark.parametrize("predicted", [{"attention": None}, {"attention": heat_of(0), "has_content": False}])
def test_a_prompt_without_content_means_everywhere_with_a_warning(predicted):
    key = make_prediction((1, 4, SIDE, SIDE), make_step(1))
    with capture_logs() as logs:
        mask, _ = UpBlockAttention().mask(key.step, key, Predicted(key.model_output, **predicted), None)
    assert mask is None
    assert warned(logs) == [(1, "warning")]


def test_no_mask_is_everywhere_without_a_warning():
    with capture_logs() as logs:
        assert ask(NoMask()) == (None, None)
    assert not logs


def test_what_differs_from_the_border_is_the_object():
    step = make_step(0, prediction_type="sample")
    picture = 0.1 * Streams(0).normal((1, 4, SIDE, SIDE), "background")
    picture[..., 3:5, 3:5] += torch.tensor([2.0, -1.0, 1.0, 3.0]).view(4, 1, 1)
    key = evolve(make_prediction(picture.shape, step), model_output=picture)
    mask, _ = ParameterFreeAttention().mask(step, key, Predicted(picture), None)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[3:5, 3:5] = True
    assert mask[0, 0][inside].min() > mask[0, 0][~inside].max()


@pytest.mark.parametrize(
    ("prompt", "skip", "content"),
    [
        ("a fox", STOP_WORDS, (2,)),
        ("a fox", frozenset(), (1, 2)),
        ("of a", STOP_WORDS, (1, 2)),  # this vocabulary has no word "of": "o" and "f" are letters, "a" is a stop word
        ("a", STOP_WORDS, ()),
        ("", frozenset(), ()),
        (", !", frozenset(), ()),
    ],
)
def test_markers_stop_words_and_signs_are_no_content(pipe, prompt, skip, content):
    conditioning = StableDiffusionBackbone(pipe).encode_prompt(prompt, "", AttentionRequest(skip_words=skip))
    assert conditioning.content == content


@pytest.fixture
def inputs():
    streams = Streams(0)
    rows = 3
    return (
        streams.normal((rows, 4, NATIVE, NATIVE), "latents"),
        torch.tensor(500),
        streams.normal((rows, 16, 32), "text"),
    )


def forward(unet, inputs):
    with torch.inference_mode():
        return unet(*inputs, return_dict=False)[0]


def explicit_map(unet, inputs, layers, rows, tokens):
    """softmax(q k^T / sqrt(d)), averaged, from what the network's own to_q and to_k gave."""
    seen, handles = {}, []
    modules = cross_attentions(unet, layers)
    for module in modules:
        for part in ("to_q", "to_k"):
            hook = lambda _, __, output, at=(module, part): seen.update({at: output})  # noqa: E731
            handles.append(getattr(module, part).register_forward_hook(hook))
    forward(unet, inputs)
    for handle in handles:
        handle.remove()
    maps = []
    for module in modules:
        query, key = seen[module, "to_q"][rows], seen[module, "to_k"][rows]
        total = 0
        for head in range(module.heads):
            width = query.shape[-1] // module.heads
            part = slice(head * width, (head + 1) * width)
            scores = (query[..., part] @ key[..., part].transpose(1, 2) / width**0.5).softmax(-1)
            total = total + scores[..., tokens].mean(-1)
        flat = total / module.heads
        side = int(flat.shape[-1] ** 0.5)
        flat = flat.view(-1, 1, side, side)
        maps.append(F.interpolate(flat, (NATIVE, NATIVE), mode="bilinear", align_corners=False))
    return torch.stack(maps).mean(0)


@pytest.mark.parametrize(("layers", "rows", "tokens"), [((), [1], [2]), ((0,), [0, 2], [1, 2, 5])])
def test_captured_maps_are_the_explicit_softmax(pipe, inputs, layers, rows, tokens):
    expected = explicit_map(pipe.unet, inputs, layers, rows, tokens)
    with capture_maps(pipe.unet, layers, rows, tokens) as maps:
        forward(pipe.unet, inputs)
    torch.testing.assert_close(maps.mean((NATIVE, NATIVE)), expected, rtol=1e-5, atol=1e-6)
    assert expected.std() > 0


def hooks(unet):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in unet.modules()]


def test_capturing_changes_no_bit_and_leaves_nothing_behind(pipe, inputs):
    plain, processors, before = forward(pipe.unet, inputs), dict(pipe.unet.attn_processors), hooks(pipe.unet)
    with capture_maps(pipe.unet, (), [0], [1]):
        assert torch.equal(forward(pipe.unet, inputs), plain)
        assert pipe.unet.attn_processors == processors
    assert hooks(pipe.unet) == before

    def fail():
        with capture_maps(pipe.unet, (), [0], [1]):
            forward(pipe.unet, inputs)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert hooks(pipe.unet) == before
    assert pipe.unet.attn_processors == processors


@pytest.mark.parametrize("layers", [(1,), (-2,), (0, 7)])
def test_layers_that_do_not_exist_are_refused(pipe, layers):
    with pytest.raises(CapabilityError, match="this network has 1 up blocks"):
        cross_attentions(pipe.unet, layers)


@given(height=st.integers(1, 60), width=st.integers(1, 60), halvings=st.integers(0, 4))
def test_a_layers_shape_is_told_by_its_cells(height, width, halvings):
    small = height, width
    for _ in range(halvings):
        small = (small[0] + 1) // 2, (small[1] + 1) // 2
    if small[0] * small[1] > 1:
        assert layer_shape(height, width, small[0] * small[1]) == small
    with pytest.raises(CapabilityError, match="no halving"):
        layer_shape(height, width, height * width + 1)
