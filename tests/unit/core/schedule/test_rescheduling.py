"""Noise re-scheduling: means of the training size have the noise that the network is told of, at every timestep."""

import math

import pytest
import torch
from attrs import evolve

from schedulers import new_scheduler
from vitrail.core.schedule.noise_schedule import NoiseSchedule
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.rescheduling import reread, rescheduled, with_noise
from vitrail.errors import CapabilityError
from vitrail.testing import make_step

NAMES = ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]


def schedule(scheduler):
    scheduler.set_timesteps(20)
    return NoiseSchedule.of(scheduler)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [4.0, 2.25])
def test_the_ratio_of_noise_to_signal_grows_with_the_side_and_timesteps_stay(name, gamma):
    """A mean over g cells has g times less variance, which is the noise of the timestep before."""
    before, after = schedule(new_scheduler(name)), schedule(rescheduled(new_scheduler(name), gamma))
    assert after.timesteps == before.timesteps and after.prediction_type == before.prediction_type
    levels = [s / a for a, s in zip(before.alphas, before.sigmas, strict=True)]
    assert [s / a for a, s in zip(after.alphas, after.sigmas, strict=True)] == pytest.approx(
        [math.sqrt(gamma) * level for level in levels], rel=1e-3
    )
    assert after.trained[500] == pytest.approx(math.sqrt(gamma) * before.trained[500], rel=1e-3)


def test_a_picture_of_the_training_area_has_the_scheduler_itself():
    scheduler = new_scheduler("DDIMScheduler")
    assert rescheduled(scheduler, 1.0) is scheduler
    assert with_noise([0.0, 0.3, 1.0], 1.0) == [0.0, 0.3, 1.0]
    assert with_noise([0.0, 0.5, 1.0], 4.0) == [0.0, 0.2, 1.0]


def test_the_scheduler_that_is_given_is_not_changed():
    scheduler = new_scheduler("DDIMScheduler")
    before = scheduler.alphas_cumprod.clone()
    rescheduled(scheduler, 4.0)
    assert scheduler.alphas_cumprod.equal(before) and scheduler.config.trained_betas is None


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("form", [1.0, 3.0], ids=["preserving", "exploding"])
def test_an_output_of_any_type_says_the_noise_that_it_says_at_its_timestep(kind, form):
    """The latents are 4 times the area, so the network is told of half of their noise for the signal."""
    shown, noise = (torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(n)).double() for n in (0, 1))
    alpha, sigma = 0.8, 0.6
    told = Prediction(shown, torch.zeros_like(shown), make_step(prediction_type=kind, alpha=alpha, sigma=sigma))
    output = told.move_noise(noise - told.noise).model_output
    step = make_step(prediction_type=kind, alpha=form * alpha, sigma=form * 2 * sigma)
    own = evolve(step, alpha=step.alpha / step.norm, sigma=step.sigma / step.norm)
    torch.testing.assert_close(Prediction(shown, reread(output, shown, step, 4.0), own).noise, noise)
    assert (Prediction(shown, output, own).noise - noise).abs().max() > 0.1
    assert reread(output, shown, step, 1.0) is output
    assert reread(output, shown, evolve(step, prediction_type="epsilon"), 4.0) is output


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_schedulers_without_a_table_are_refused_with_what_to_do(name):
    with pytest.raises(CapabilityError, match=rf"enter\.reschedule changes .* {name} has none .*'shift'"):
        rescheduled(new_scheduler(name), 4.0)
