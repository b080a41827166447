"""One network output, four ways to say it: all agree, with each other and with diffusers."""

import math

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from schedulers import new_scheduler
from vitrail.core.noise_schedule import Stepper
from vitrail.core.prediction import Prediction
from vitrail.core.streams import Streams
from vitrail.testing import PREDICTION_TYPES, make_prediction, make_step

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
