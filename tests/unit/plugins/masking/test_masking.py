"""Masks: a soft weight in [0, 1] that follows the map, and says so when there is none to follow."""

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.core.method.composition import Composition
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.method.stage import Stage
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError, CompositionError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.masking.attention import PromptAttention
from vitrail.plugins.masking.heat_maps import STOP_WORDS
from vitrail.plugins.masking.joint_attention import JointAttention
from vitrail.plugins.masking.none import NoMask
from vitrail.plugins.masking.pfsa import ParameterFreeAttention
from vitrail.plugins.masking.up_block_attention import UpBlockAttention
from vitrail.plugins.patching.whole import Whole
from vitrail.testing import make_prediction, make_step

SEEDS = st.integers(0, 2**32)
FOLLOWERS = [UpBlockAttention, JointAttention]
SOURCES = [*FOLLOWERS, ParameterFreeAttention]
SIDE = 8


def heat_of(seed):
    return Streams(seed).uniform((1, 1, SIDE, SIDE), "heat") / 7


def ask(source, index=0, seed=0, state=None, heat=None, **changes):
    """The mask for a key view of random latents and a random map."""
    key = make_prediction((1, 4, SIDE, SIDE), make_step(index, **changes), seed)
    predicted = ModelOutput(key.model_output, heat_of(seed) if heat is None else heat)
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
        mask, _ = ParameterFreeAttention().mask(step, flat, ModelOutput(flat.model_output), None)
    assert mask is None
    assert warned(logs) == [(2, "warning")]


@pytest.mark.parametrize("predicted", [{"attention": None}, {"attention": heat_of(0), "has_content": False}])
def test_a_prompt_without_content_means_everywhere_with_a_warning(predicted):
    key = make_prediction((1, 4, SIDE, SIDE), make_step(1))
    with capture_logs() as logs:
        mask, _ = UpBlockAttention().mask(key.step, key, ModelOutput(key.model_output, **predicted), None)
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
    mask, _ = ParameterFreeAttention().mask(step, key, ModelOutput(picture), None)
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[3:5, 3:5] = True
    assert mask[0, 0][inside].min() > mask[0, 0][~inside].max()


@pytest.mark.parametrize("cls", FOLLOWERS)
@given(seed=SEEDS)
def test_a_map_can_keep_its_floor(cls, seed):
    heat = heat_of(seed) + 0.05
    mask, _ = ask(cls(normalise="max", clip=0.0), heat=heat)
    torch.testing.assert_close(mask, heat / heat.max())


def test_up_blocks_and_joint_attention_make_the_same_of_a_map():
    options = {"words": ("fox",), "tokens": "max", "clip": 0.1, "ema": 0.3, "ramp_steps": 3}
    masks = [ask(cls(**options), 1, state=heat_of(9))[0] for cls in FOLLOWERS]
    assert torch.equal(*masks)
    requests = [cls(layers=(0, -1), **options).request for cls in FOLLOWERS]
    assert [request.kind for request in requests] == ["cross", "joint"]
    wanted = {"skip_words": STOP_WORDS, "words": ("fox",), "over": "max"}
    assert requests == [
        AttentionRequest(kind="cross", layers=(0, -1), **wanted),
        AttentionRequest(kind="joint", blocks=(0, -1), **wanted),
    ]


def test_a_lone_word_is_no_list_of_letters():
    assert UpBlockAttention(words="fox") == UpBlockAttention(words=["fox"])


def composed(masking):
    return Composition(stages=[Stage(patching=Whole(), fusion=Average(), masking=masking)])


@pytest.mark.parametrize(
    ("masking", "adapter", "instead"),
    [
        (UpBlockAttention, "sd3", "attention, joint-attention, none or pfsa"),
        (JointAttention, "sd", "attention, none, pfsa or up-block-attention"),
        (JointAttention, "sdxl", "attention, none, pfsa or up-block-attention"),
    ],
)
def test_a_model_without_the_maps_is_refused_with_what_would_do(masking, adapter, instead, names):
    offers, need = names.get("backbones", adapter).offers, next(iter(masking.needs))
    told = rf"stages\.0\.masking: {masking.__name__} needs '{need}'; {instead} would do\n"
    with pytest.raises(CapabilityError, match=told):
        composed(masking()).check(offers, "model 'x'", names)
    with pytest.raises(CapabilityError, match=rf"needs '{need}'\n"):
        composed(masking()).check(offers, "model 'x'")


def test_stages_must_want_the_same_maps():
    stages = [evolve(composed(UpBlockAttention(words=word)).stages[0], until=u) for word, u in (("a", 0.5), ("b", 1.0))]
    with pytest.raises(CompositionError, match="stages want different attention maps"):
        Composition(stages=stages).attention_request()


@pytest.mark.parametrize("named", FOLLOWERS)
def test_maps_of_whichever_kind_are_those_that_another_stage_names(named):
    stages = [evolve(composed(cls(ema=0.5)).stages[0], until=u) for cls, u in ((named, 0.5), (PromptAttention, 1.0))]
    for order in (stages, [evolve(stages[1], until=0.5), evolve(stages[0], until=1.0)]):
        assert Composition(stages=order).attention_request() == named().request
