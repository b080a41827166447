"""Every scheduler of diffusers is read rightly or refused.

The oracle is a network that knows the picture: whatever a scheduler does, the latents must then stay
``alpha x0 + sigma noise`` with the alpha and sigma that were read for each call, and end in the picture.
"""

import pytest
import torch

from schedulers import DETERMINISTIC, OF_OTHER_MODELS, READ, REFUSED, STOCHASTIC, new_scheduler
from vitrail.core.schedule.noise_schedule import NoiseSchedule, Stepper, prediction_type_of
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError
from vitrail.testing import make_step

SHAPE = (1, 4, 64, 64)
CLEAN, NOISE = Streams(0).normal(SHAPE, "clean"), Streams(0).normal(SHAPE, "noise")
# PNDM mixes outputs of several timesteps before it reads them, which is exact for epsilon alone
KINDS = [(n, k) for n in READ for k in ("epsilon", "v_prediction") if (n, k) != ("PNDMScheduler", "v_prediction")]


def walk(stepper):
    """(alpha, sigma, latents) before each call, and the final latents, led by a network that knows ``CLEAN``."""
    schedule, generator = stepper.schedule, Streams(0).generator("step-noise")
    latents = schedule.alphas[0] * CLEAN + schedule.sigmas[0] * NOISE
    visited = []
    for index, (alpha, sigma) in enumerate(zip(schedule.alphas, schedule.sigmas, strict=True)):
        visited.append((alpha, sigma, latents))
        step = make_step(0, alpha=alpha, sigma=sigma, prediction_type=schedule.prediction_type)
        said = Prediction(latents, torch.zeros_like(latents), step).with_clean(CLEAN)
        stepper.scale(latents, index)
        latents = stepper.step(said.model_output, index, latents, generator)
    return visited, latents


@pytest.mark.parametrize(("name", "kind"), [pair for pair in KINDS if pair[0] in DETERMINISTIC])
def test_an_ordinary_solver_keeps_the_noise_that_it_was_given(name, kind):
    visited, _ = walk(Stepper(new_scheduler(name, prediction_type=kind, skip_prk_steps=True), 8))
    for alpha, sigma, latents in visited:
        torch.testing.assert_close(latents, alpha * CLEAN + sigma * NOISE, rtol=1e-4, atol=1e-4 * (alpha + sigma))


@pytest.mark.parametrize(("name", "kind"), [pair for pair in KINDS if pair[0] in STOCHASTIC])
def test_a_stochastic_sampler_keeps_the_noise_level(name, kind):
    visited, _ = walk(Stepper(new_scheduler(name, prediction_type=kind), 8))
    for alpha, sigma, latents in visited:
        assert float(((latents - alpha * CLEAN) / sigma).std()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_network_that_knows_the_picture_leads_to_it(name, kind):
    _, final = walk(Stepper(new_scheduler(name, prediction_type=kind), 8))
    assert float((final - CLEAN).std()) < 0.05


@pytest.mark.parametrize("name", sorted({"SASolverScheduler", *DETERMINISTIC} - {"PNDMScheduler"}))
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_noise_is_added_at_the_level_that_was_read(name, spacing):
    for index in (0, 2, -1):  # even calls: interleaved solvers know those
        scheduler = new_scheduler(name, timestep_spacing=spacing)  # some remember where they were asked first
        stepper = Stepper(scheduler, 6)
        schedule = stepper.schedule
        if hasattr(scheduler, "add_noise"):
            noised = scheduler.add_noise(CLEAN, NOISE, stepper.timesteps[index].view(1))
        else:
            noised = scheduler.scale_noise(CLEAN, stepper.timesteps[index].view(1), NOISE)
        expected = schedule.alphas[index] * CLEAN + schedule.sigmas[index] * NOISE
        torch.testing.assert_close(noised, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])
@pytest.mark.parametrize(
    "name",
    ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"],
)
def test_other_spacings_of_sigma_are_read_too(name, options):
    visited, _ = walk(Stepper(new_scheduler(name, **options), 8))
    for alpha, sigma, latents in visited:
        torch.testing.assert_close(latents, alpha * CLEAN + sigma * NOISE, rtol=1e-4, atol=1e-4 * (alpha + sigma))


@pytest.mark.parametrize("name", READ)
def test_the_form_is_one_of_three(name):
    stepper = Stepper(new_scheduler(name), 8)
    schedule = stepper.schedule
    for alpha, sigma in zip(schedule.alphas, schedule.sigmas, strict=True):
        forms = (alpha**2 + sigma**2 - 1, alpha - 1, alpha + sigma - 1)
        assert min(map(abs, forms)) < 1e-6
        assert alpha >= 0
        assert sigma > 0
    start = schedule.alphas[0] ** 2 + schedule.sigmas[0] ** 2  # of latents of unit size
    assert stepper.init_noise_sigma**2 == pytest.approx(start, rel=0.1)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_read_is_refused_by_name(name):
    with pytest.raises(CapabilityError, match=name):
        Stepper(new_scheduler(name), 8)


def test_every_scheduler_has_been_decided_on():
    """A new scheduler of diffusers that fails a law above wants an entry in ``tests/schedulers.py``."""
    assert not set(READ) & (REFUSED | OF_OTHER_MODELS)
    assert set(READ) >= STOCHASTIC
    assert len(DETERMINISTIC) > 10


def test_an_unknown_prediction_type_is_refused():
    scheduler = new_scheduler("DDIMScheduler")
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(CapabilityError, match=r"'score' is unknown; known: epsilon"):
        prediction_type_of(scheduler)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_latents_move_on_a_straight_line(shift):
    schedule = Stepper(new_scheduler("FlowMatchEulerDiscreteScheduler", shift=shift), 10).schedule
    assert schedule.prediction_type == "flow_prediction"
    assert [a + s for a, s in zip(schedule.alphas, schedule.sigmas, strict=True)] == pytest.approx([1.0] * 10)
    assert schedule.sigmas[0] == pytest.approx(1.0)


EULER_50 = {
    0: (981, 13.1204),
    5: (881, 7.5624),
    10: (781, 4.6917),
    15: (681, 3.0930),
    20: (581, 2.1354),
    24: (501, 1.6237),
    25: (481, 1.5192),
    30: (381, 1.0939),
    35: (281, 0.7789),
    40: (181, 0.5270),
    45: (81, 0.3006),
    49: (1, 0.0413),
}


def test_the_published_table_of_fifty_euler_steps():
    stepper = Stepper(new_scheduler("EulerDiscreteScheduler"), 50)
    schedule: NoiseSchedule = stepper.schedule
    for index, (timestep, sigma) in EULER_50.items():
        assert schedule.timesteps[index] == timestep
        assert schedule.sigmas[index] == pytest.approx(sigma, abs=1e-4)
    assert set(schedule.alphas) == {1.0}
    assert stepper.init_noise_sigma == pytest.approx(13.1585, abs=1e-3)


def test_the_input_is_scaled_to_unit_size_once_a_step():
    stepper = Stepper(new_scheduler("EulerDiscreteScheduler"), 10)
    for index, sigma in enumerate(stepper.schedule.sigmas):
        once, again = stepper.scale(NOISE, index), stepper.scale(NOISE, index)
        assert torch.equal(once, again)
        torch.testing.assert_close(once, NOISE / (1 + sigma**2) ** 0.5)
        stepper.step(NOISE, index, NOISE, Streams(0).generator("step-noise"))
