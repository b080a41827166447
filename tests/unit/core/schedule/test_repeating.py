"""A timestep that is done again: its noise is that of the schedule, and schedulers with a memory are refused."""

import math

import pytest
import torch

from schedulers import READ, STOCHASTIC, new_scheduler
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError
from vitrail.testing import make_step

SHAPE, STEPS = (1, 4, 64, 64), 8
CLEAN = Streams(0).normal(SHAPE, "clean")
REMEMBERING = {  # multistep, and second-order ones, whose calls come in pairs
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
}


def stepper(name, first=0):
    made = Stepper(new_scheduler(name), STEPS)
    if first:
        made.begin_at(first)
    return made


@pytest.mark.parametrize("name", READ)
def test_a_scheduler_that_remembers_earlier_steps_is_refused(name):
    if name not in REMEMBERING:
        stepper(name).check_repeatable()
        stepper(name, first=3).check_repeatable()
        return
    with pytest.raises(CapabilityError, match=rf"{name} remembers earlier steps .*; use one .* or set repeat\.times"):
        stepper(name).check_repeatable()


def test_a_multistep_scheduler_of_first_order_remembers_nothing():
    Stepper(new_scheduler("DPMSolverMultistepScheduler", solver_order=1), STEPS).check_repeatable()


@pytest.mark.parametrize("name", [name for name in READ if name not in REMEMBERING])
def test_a_walk_that_does_every_step_twice_stays_on_the_schedule(name):
    """Led by a network that knows the picture: the rest is noise of the level that was read, and ends in nothing."""
    made, generator = stepper(name), Streams(0).generator("step-noise")
    schedule = made.schedule
    latents = schedule.alphas[0] * CLEAN + schedule.sigmas[0] * Streams(0).normal(SHAPE, "noise")
    for index, (alpha, sigma) in enumerate(zip(schedule.alphas, schedule.sigmas, strict=True)):
        step = make_step(0, alpha=alpha, sigma=sigma, prediction_type=schedule.prediction_type)
        for time in range(1 if index == len(schedule.alphas) - 1 else 2):
            if time:
                latents = made.again(latents, Streams(1).normal(SHAPE, "again", index), index)
            noise = (latents - alpha * CLEAN) / sigma
            assert float(noise.std()) == pytest.approx(1, abs=0.03) and float(noise.mean()) == pytest.approx(
                0, abs=0.03
            )
            said = Prediction(latents, torch.zeros_like(latents), step).with_clean(CLEAN)
            made.scale(latents, index)
            latents = made.step(said.model_output, index, latents, generator)
    if name not in STOCHASTIC:
        torch.testing.assert_close(latents, CLEAN, rtol=1e-2, atol=0.1)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_step_done_again_from_the_same_latents_is_the_same_step(name):
    made, generator = stepper(name), Streams(0).generator("step-noise")
    latents = Streams(0).normal(SHAPE, "x")
    for index in range(STEPS - 1):
        made.scale(latents, index)
        after = made.step(CLEAN, index, latents, generator)
        made.again(after, CLEAN, index)
        assert torch.equal(made.scale(latents, index), stepper(name, index).scale(latents, index))
        assert torch.equal(made.step(CLEAN, index, latents, generator), after)
        latents = after


def test_noise_that_is_added_again_is_that_of_the_training_betas_walked_up():
    """x becomes sqrt(1 - b) x + sqrt(b) n for every beta in between, each with fresh noise."""
    made = stepper("DDIMScheduler")
    betas = made.scheduler.betas.double()
    for index in range(STEPS - 1):
        high, low = (int(made.timesteps[each]) for each in (index, index + 1))
        kept, variance = 1.0, 0.0
        for beta in betas[low + 1 : high + 1].tolist():
            kept, variance = kept * math.sqrt(1 - beta), (1 - beta) * variance + beta
        zero, one = torch.zeros(SHAPE), torch.ones(SHAPE)
        assert float(made.again(one, zero, index)[0, 0, 0, 0]) == pytest.approx(kept, rel=1e-5)
        assert float(made.again(zero, one, index)[0, 0, 0, 0]) == pytest.approx(math.sqrt(variance), rel=1e-5)
