"""One network output, four ways to say it: all agree, with each other and with diffusers."""

import math

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from schedulers import new_scheduler
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError, PredictionError
from vitrail.testing import ENDS, PREDICTION_TYPES, make_prediction, make_step

SHAPE = (2, 4, 6, 6)
SEEDS = st.integers(0, 2**32)
SCALES = st.one_of(  # variance preserving, variance exploding, flow
    st.floats(0.02, 0.98).map(lambda s: (math.sqrt(1 - s * s), s)),
    st.floats(0.02, 15.0).map(lambda s: (1.0, s)),
    st.floats(0.02, 0.98).map(lambda s: (1 - s, s)),
)
TYPES = st.sampled_from(PREDICTION_TYPES)


def draw(seed, name):
    return Streams(seed).normal(SHAPE, name).double()


def output(kind, alpha, sigma, clean, noise):
    """What a perfect network of each type says."""
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": (alpha * noise - sigma * clean) / math.hypot(alpha, sigma),
        "flow_prediction": noise - clean,
    }[kind]


def record(kind, scales, seed):
    alpha, sigma = scales
    clean, noise = draw(seed, "clean"), draw(seed, "noise")
    step = make_step(0, prediction_type=kind, alpha=alpha, sigma=sigma)
    return Prediction(alpha * clean + sigma * noise, output(kind, alpha, sigma, clean, noise), step), clean, noise


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


@given(kind=TYPES, scales=SCALES, seed=SEEDS)
def test_every_type_reads_as_the_same_clean_latents_and_noise(kind, scales, seed):
    prediction, clean, noise = record(kind, scales, seed)
    close(prediction.clean, clean)
    close(prediction.noise, noise)


@given(kind=TYPES, scales=SCALES, seed=SEEDS)
def test_clean_latents_and_noise_add_up_to_the_latents_whatever_was_said(kind, scales, seed):
    prediction, _, _ = record(kind, scales, seed)
    said = evolve(prediction, model_output=draw(seed, "anything"))
    close(scales[0] * said.clean + scales[1] * said.noise, said.latents)


@given(kind=TYPES, scales=SCALES, seed=SEEDS)
def test_moves_move_by_what_they_are_told(kind, scales, seed):
    prediction, clean, noise = record(kind, scales, seed)
    delta, (alpha, sigma) = draw(seed, "delta"), scales
    moved = prediction.move_clean(delta)
    close(moved.clean, clean + delta)
    close(moved.noise, noise - alpha / sigma * delta)
    moved = prediction.move_noise(delta)
    close(moved.noise, noise + delta)
    close(moved.clean, clean - sigma / alpha * delta)
    assert moved.latents is prediction.latents
    close(prediction.with_clean(delta).clean, delta)


@given(kind=TYPES, scales=SCALES, seed=SEEDS)
def test_a_move_by_nothing_keeps_every_bit(kind, scales, seed):
    step = make_step(0, prediction_type=kind, alpha=scales[0], sigma=scales[1])
    prediction = make_prediction(SHAPE, step, seed)
    for nothing in (torch.zeros(SHAPE), torch.zeros(2, 1, 1, 1), -torch.zeros(SHAPE)):
        for moved in (prediction.move_clean(nothing), prediction.move_noise(nothing)):
            assert torch.equal(moved.model_output, prediction.model_output)
    assert prediction.move_clean(torch.zeros(SHAPE)).model_output.dtype == torch.float32


# ---------------------------------------------------------------- the ends of schedules

FORMS = {"variance preserving": lambda s: (math.sqrt(1 - s * s), s), "flow": lambda s: (1 - s, s)}
EVERY_END = [(kind, end) for kind, ends in ENDS.items() for end in ends]


def scales_at(end):
    return (1.0, 0.0) if end == "clean" else (0.0, 1.0)


@pytest.mark.parametrize(("kind", "end"), EVERY_END)
def test_a_perfect_output_is_read_at_the_ends_as_anywhere(kind, end):
    prediction, clean, noise = record(kind, scales_at(end), seed=1)
    close(prediction.clean, clean)
    close(prediction.noise, noise)


@pytest.mark.parametrize(("kind", "end"), EVERY_END)
def test_the_ends_are_limits_of_what_lies_beside_them(kind, end):
    """Clean latents, noise, and what can be moved; of whatever was said."""
    said, delta = draw(2, "anything"), draw(2, "delta")
    at, beside = (
        evolve(record(kind, scales, seed=1)[0], model_output=said)
        for scales in (scales_at(end), FORMS["flow"](1e-9 if end == "clean" else 1 - 1e-9))
    )
    free = {"noise": "clean", "only": "clean", "clean": "noise"}[end]
    kept = {"clean": "noise", "noise": "clean"}[free]
    fixed_by_the_output = {"epsilon": "noise", "sample": "clean"}.get(kind)
    move = {"clean": lambda p: p.move_clean(delta), "noise": lambda p: p.move_noise(delta)}
    torch.testing.assert_close(getattr(at, free), getattr(beside, free), rtol=1e-6, atol=1e-6)
    moved = move[free](at)
    torch.testing.assert_close(moved.model_output, move[free](beside).model_output, rtol=1e-6, atol=1e-6)
    close(getattr(moved, free), getattr(at, free) + delta)
    if fixed_by_the_output != kept:  # the latents say it, so nothing moves it
        close(getattr(at, kept), at.latents)
        assert torch.equal(move[kept](at).model_output, said)
        close(getattr(moved, kept), at.latents)


@pytest.mark.parametrize(("kind", "end"), EVERY_END)
def test_no_move_ever_leaves_the_finite(kind, end):
    step = make_step(prediction_type=kind, end=end)
    prediction, delta = make_prediction(SHAPE, step), torch.ones(SHAPE)
    for moved in (prediction.move_clean(delta), prediction.move_noise(delta), prediction.with_clean(delta)):
        assert moved.model_output.isfinite().all()
        assert moved.clean.isfinite().all() and moved.noise.isfinite().all()
    for nothing in (torch.zeros(SHAPE), -torch.zeros(SHAPE)):
        assert torch.equal(prediction.move_clean(nothing).model_output, prediction.model_output)
        assert torch.equal(prediction.move_noise(nothing).model_output, prediction.model_output)


@pytest.mark.parametrize(
    ("kind", "scales", "what", "told"),
    [
        ("epsilon", (0.0, 1.0), "clean", "at alpha = 0 a prediction of type 'epsilon' does not say the clean latents"),
        ("sample", (1.0, 0.0), "noise", "at sigma = 0 a prediction of type 'sample' does not say the noise"),
    ],
)
def test_what_an_output_leaves_open_is_refused_and_not_divided_by_zero(kind, scales, what, told):
    step = make_step(4, prediction_type=kind, alpha=scales[0], sigma=scales[1])
    with pytest.raises(PredictionError, match=f"step 5: {told}"):
        getattr(make_prediction(SHAPE, step), what)


def test_a_schedule_that_leaves_the_picture_open_is_refused_before_a_run():
    with pytest.raises(CapabilityError, match=r"DDIMScheduler begins with noise alone.*rescale_betas_zero_snr"):
        Stepper(new_scheduler("DDIMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing"), 4)


@pytest.mark.parametrize("index", [0, 3, 7])
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        *((name, kind, {}) for name in ("DDIMScheduler", "DDPMScheduler") for kind in PREDICTION_TYPES[:3]),
        *(("EulerDiscreteScheduler", kind, {}) for kind in PREDICTION_TYPES[:3]),
        *(("LMSDiscreteScheduler", kind, {}) for kind in PREDICTION_TYPES[:2]),
        *(("EulerAncestralDiscreteScheduler", kind, {}) for kind in PREDICTION_TYPES[:2]),
        *(("HeunDiscreteScheduler", kind, {}) for kind in PREDICTION_TYPES[:2]),
        *(("DPMSolverMultistepScheduler", kind, {}) for kind in PREDICTION_TYPES[:3]),
        ("DPMSolverMultistepScheduler", "flow_prediction", {"use_flow_sigmas": True}),
        ("UniPCMultistepScheduler", "flow_prediction", {"use_flow_sigmas": True}),
    ],
)
def test_diffusers_reads_the_same_clean_latents(name, kind, options, index):
    scheduler = new_scheduler(name, prediction_type=kind, **options)
    stepper = Stepper(scheduler, 8)
    schedule, timestep = stepper.schedule, stepper.timesteps[index]
    step = make_step(0, prediction_type=kind, alpha=schedule.alphas[index], sigma=schedule.sigmas[index])
    prediction = make_prediction(SHAPE, step, seed=index)
    assert schedule.prediction_type == kind
    stepper.scale(prediction.latents, index)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._init_step_index(timestep)
        theirs = scheduler.convert_model_output(prediction.model_output, sample=prediction.latents)
    else:
        answer = scheduler.step(prediction.model_output, timestep, prediction.latents)
        theirs = answer.pred_original_sample
    torch.testing.assert_close(prediction.clean, theirs, rtol=1e-4, atol=1e-4)
