"""Noise re-scheduling: means of the training size have the noise that the network is told of, at every timestep."""

import math

import pytest

from schedulers import new_scheduler
from vitrail.core.schedule.noise_schedule import NoiseSchedule
from vitrail.core.schedule.rescheduling import rescheduled, with_noise
from vitrail.errors import CapabilityError

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


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"])
def test_schedulers_without_a_table_are_refused_with_what_to_do(name):
    with pytest.raises(CapabilityError, match=rf"enter\.reschedule changes .* {name} has none .*'shift'"):
        rescheduled(new_scheduler(name), 4.0)
