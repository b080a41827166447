"""Structure guidance: the identities between its forms, the key view, and what a step of delay means."""

import math

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from schedulers import new_scheduler
from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.guidance.none import NoGuidance
from vitrail.plugins.guidance.structure import FORMS, AsyncGuidance, SyncGuidance
from vitrail.testing import PREDICTION_TYPES, make_prediction, make_step

VIEWS = 4
SHAPE = (VIEWS, 1, 4, 6, 6)
KINDS = st.sampled_from(PREDICTION_TYPES)
KEYS = st.integers(0, VIEWS - 1)
SEEDS = st.integers(0, 2**32)
SCALES = st.floats(0, 4)
OFF = {"x0": 0.0, "literal": 0.0, "reversed": 0.0, "cfg-like": 1.0}


def subject_at(index=0, kind="epsilon", seed=0, **changes):
    return make_prediction(SHAPE, make_step(index, prediction_type=kind, **changes), seed)


def mask_of(seed):
    return Streams(seed).uniform((1, 1, 6, 6), "mask")


def sync(subject, key=0, mask=None, **options):
    guided, state = SyncGuidance(**options).guide(subject.step, subject, GuidanceContext(key=key, mask=mask), None)
    assert state is None
    return guided


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@given(form=st.sampled_from(FORMS), kind=KINDS, key=KEYS, scale=SCALES, seed=SEEDS, masked=st.booleans())
def test_the_key_view_is_never_moved(form, kind, key, scale, seed, masked):
    subject, mask = subject_at(3, kind, seed), mask_of(seed) if masked else None
    guided = sync(subject, key, mask, form=form, scale=scale)
    assert torch.equal(guided.model_output[key], subject.model_output[key])
    late = AsyncGuidance(form=form, scale=scale, warmup_steps=0)
    _, message = late.guide(
        subject.step, subject_at(2, kind, seed + 1), GuidanceContext(key=key, mask=mask), late.init()
    )
    guided, _ = late.guide(subject.step, subject, GuidanceContext(key=key, mask=mask), message)
    assert torch.equal(guided.model_output[key], subject.model_output[key])


@given(form=st.sampled_from(FORMS), kind=KINDS, key=KEYS, seed=SEEDS)
def test_a_scale_of_off_and_a_mask_of_zero_change_no_bit(form, kind, key, seed):
    subject = subject_at(3, kind, seed)
    assert torch.equal(sync(subject, key, form=form, scale=OFF[form]).model_output, subject.model_output)
    if form != "cfg-like":
        nowhere = torch.zeros(1, 1, 6, 6)
        assert torch.equal(sync(subject, key, nowhere, form=form, scale=3.0).model_output, subject.model_output)


@given(kind=KINDS, key=KEYS, seed=SEEDS, scale=st.floats(1, 4))
def test_full_x0_guidance_gives_every_view_the_clean_latents_of_the_key(kind, key, seed, scale):
    subject = subject_at(3, kind, seed)
    close(sync(subject, key, scale=scale).clean, subject.clean[key].expand(SHAPE))


@given(kind=KINDS, key=KEYS, seed=SEEDS, scale=SCALES)
def test_the_forms_are_what_they_say(kind, key, seed, scale):
    subject, mask = subject_at(3, kind, seed), mask_of(seed)
    clean, noise, others = subject.clean, subject.noise, [i for i in range(VIEWS) if i != key]
    towards_clean = (scale * mask).clamp(0, 1) * (clean[key] - clean)
    towards_noise = scale * mask * (noise[key] - noise)

    def guided(form):
        return sync(subject, key, mask, scale=scale, form=form)

    close(guided("x0").clean[others], (clean + towards_clean)[others])
    close(guided("literal").noise[others], (noise + towards_noise)[others])
    close(guided("reversed").noise[others], (noise - towards_noise)[others])
    cfg_like = noise[key] + scale * mask * (noise - noise[key])
    close(guided("cfg-like").noise[others], cfg_like[others])


@given(kind=KINDS, key=KEYS, seed=SEEDS, scale=st.floats(0, 1))
def test_literal_is_x0_and_the_difference_of_the_noisy_views(kind, key, seed, scale):
    """The culprit: w (x_key - x_i) / sigma, which removes a view's own denoising."""
    subject = subject_at(3, kind, seed)
    extra = scale * (subject.latents[key] - subject.latents) / subject.step.sigma
    close(sync(subject, key, scale=scale, form="literal").noise, sync(subject, key, scale=scale).noise + extra)


@given(kind=KINDS, key=KEYS, seed=SEEDS, scale=SCALES)
def test_reversed_and_cfg_like_are_literal_with_another_scale(kind, key, seed, scale):
    subject = subject_at(3, kind, seed)
    literal, reverse = (sync(subject, key, scale=scale, form=form).noise for form in ("literal", "reversed"))
    close(literal + reverse, 2 * subject.noise, 1e-3)
    if scale <= 1:
        close(sync(subject, key, scale=1 - scale, form="cfg-like").noise, literal, 1e-3)


def network(latents):
    """Any function of the noisy views."""
    return torch.tanh(latents + 0.3 * latents.roll(1, -1)) * 1.5


@pytest.mark.parametrize("guidance", [SyncGuidance(), AsyncGuidance(warmup_steps=100)])
def test_full_guidance_has_a_closed_form_under_euler(guidance):
    """x_i(K) = x_key(K) + sigma_K / sigma_0 (x_i(0) - x_key(0)): the key view with independent noise."""
    stepper, key = Stepper(new_scheduler("EulerDiscreteScheduler"), 20), 1
    sigmas = stepper.schedule.sigmas
    start = latents = sigmas[0] * Streams(0).normal(SHAPE, "start")
    for index in range(10):
        step = make_step(index, alpha=1.0, sigma=sigmas[index])
        stepper.scale(latents, index)
        subject = Prediction(latents, network(latents / math.hypot(1, sigmas[index])), step)
        guided, _ = guidance.guide(step, subject, GuidanceContext(key=key, mask=None), guidance.init())
        latents = stepper.step(guided.model_output, index, latents, Streams(0).generator("none"))
    close(latents, latents[key] + sigmas[10] / sigmas[0] * (start - start[key]), 1e-3)


def run(guidance, subjects, key=0, masks=None):
    state, guided = guidance.init(), []
    for index, subject in enumerate(subjects):
        result, state = guidance.guide(
            subject.step, subject, GuidanceContext(key=key, mask=masks and masks[index]), state
        )
        guided.append(result)
    return guided


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_async_is_sync_with_the_message_of_exactly_one_step_before(form, warmup):
    subjects = [subject_at(index, seed=index) for index in range(5)]
    masks = [mask_of(index) for index in range(5)]
    late = run(AsyncGuidance(form=form, scale=0.7, warmup_steps=warmup), subjects, masks=masks)
    for index, (subject, guided) in enumerate(zip(subjects, late, strict=True)):
        told = index if index < warmup else index - 1
        if told < 0:
            assert torch.equal(guided.model_output, subject.model_output)
            continue
        # the views of this step, and the key view's clean latents or noise of the step that told
        spoken = subjects[told].clean if form == "x0" else subjects[told].noise
        stand_in = (subject.with_clean if form == "x0" else lambda n, s=subject: s.move_noise(n - s.noise))(spoken)
        mixed = subject.model_output.clone()
        mixed[0] = stand_in.model_output[0]
        expected = sync(evolve(subject, model_output=mixed), 0, masks[told], form=form, scale=0.7)
        close(guided.model_output[1:], expected.model_output[1:])


@pytest.mark.parametrize("form", FORMS)
def test_async_of_constant_predictions_is_sync(form):
    step = make_step(2)
    subjects = [make_prediction(SHAPE, evolve(step, index=i, stage_step=i), seed=5) for i in range(4)]
    late, now = run(AsyncGuidance(form=form), subjects), run(SyncGuidance(form=form), subjects)
    assert all(torch.equal(a.model_output, b.model_output) for a, b in zip(late, now, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_async_with_warmup_throughout_is_sync(form):
    subjects = [subject_at(index, seed=index) for index in range(4)]
    late, now = run(AsyncGuidance(form=form, warmup_steps=4), subjects), run(SyncGuidance(form=form), subjects)
    assert all(torch.equal(a.model_output, b.model_output) for a, b in zip(late, now, strict=True))


@pytest.mark.parametrize("cls", [SyncGuidance, AsyncGuidance])
def test_the_ramp_scales_over_the_stage(cls):
    for ramp, factor in (("constant", 1.0), ("linear", 0.7), ("cosine", 0.5 * (1 + math.cos(0.3 * math.pi)))):
        subject = subject_at(3, stage_step=3, stage_num_steps=10)
        guided, _ = cls(scale=0.8, ramp=ramp).guide(subject.step, subject, GuidanceContext(key=0, mask=None), None)
        if cls is SyncGuidance:
            close(guided.clean, subject.clean + 0.8 * factor * (subject.clean[0] - subject.clean))
        warm = evolve(subject, step=evolve(subject.step, stage_step=0))
        guided, _ = cls(scale=0.8, ramp=ramp).guide(warm.step, warm, GuidanceContext(key=0, mask=None), None)
        close(guided.clean, warm.clean + 0.8 * (warm.clean[0] - warm.clean))


def test_no_guidance_hands_on_what_it_receives():
    subject = subject_at(3)
    assert NoGuidance().guide(subject.step, subject, GuidanceContext(key=0, mask=None), None) == (subject, None)
    assert NoGuidance().guide(subject.step, subject, GuidanceContext(key=0, mask=None), None)[0] is subject


@pytest.mark.parametrize("options", [{"scale": -1.0}, {"form": "eps"}, {"ramp": "steep"}])
@pytest.mark.parametrize("cls", [SyncGuidance, AsyncGuidance])
def test_values_out_of_range_are_refused(cls, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        cls(**options)
