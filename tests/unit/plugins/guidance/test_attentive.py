"""Attentive guidance: attention of the latents to themselves, in one form of them for every scheduler."""

import math

import pytest
import torch

from schedulers import DETERMINISTIC, new_scheduler
from toy import NATIVE, sample, toy_sampler
from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.guidance.attentive import Attentive, attended, gamma_at
from vitrail.testing import make_step

WHOLE = {"patching": "whole", "fusion": "average"}
MIXED = ("PNDMScheduler", "v_prediction")  # it mixes outputs of several timesteps before it reads them
KINDS = [(name, kind) for name in DETERMINISTIC for kind in ("epsilon", "v_prediction") if (name, kind) != MIXED]
FORMS = ("EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler")


def latents(*shape, seed=0):
    return Streams(seed).normal(shape, "latents")


def by_matrix(z):
    """The formula as it is printed, with the matrix of all pairs of cells."""
    tokens = z.flatten(2).transpose(1, 2)
    weights = (tokens @ tokens.transpose(1, 2) / math.sqrt(z.shape[1])).softmax(-1)
    return (weights @ tokens).transpose(1, 2).reshape(z.shape)


@pytest.mark.parametrize("shape", [(1, 4, 6, 9), (3, 4, 5, 5), (2, 16, 4, 7), (1, 3, 8, 2)])
@pytest.mark.parametrize("size", [0.1, 1.0, 13.0])
def test_it_is_softmax_of_all_pairs_of_cells(shape, size):
    z = size * latents(*shape)
    torch.testing.assert_close(attended(z), by_matrix(z), rtol=1e-4, atol=1e-5 * size)


def test_a_constant_picture_is_left_as_it_is():
    constant = latents(2, 4, 1, 1).expand(2, 4, 9, 7)
    torch.testing.assert_close(attended(constant), constant)
    guided, _ = Attentive(scale=1.0, delay=0.0).guide(make_step(0), constant, GuidanceContext(), None)
    torch.testing.assert_close(guided, constant)


def test_no_scale_and_steps_before_the_delay_change_no_bit():
    z = latents(1, 4, 8, 8)
    for guidance, index in ((Attentive(scale=0.0), 5), (Attentive(delay=0.5), 4)):
        assert guidance.guide(make_step(index), z, GuidanceContext(), None)[0] is z
    assert not torch.equal(Attentive(delay=0.5).guide(make_step(5), z, GuidanceContext(), None)[0], z)


@pytest.mark.parametrize("alpha", [0.05, 0.4, 0.999])
def test_the_change_is_the_same_in_every_form(alpha):
    """What a scheduler keeps is alpha times ``x0 + sigma noise``; so is what comes out."""
    z, guidance = 5 * latents(2, 4, 8, 6), Attentive(scale=0.3, delay=0.0)
    plain, _ = guidance.guide(make_step(2, next_alpha=1.0), z, GuidanceContext(), None)
    scaled, _ = guidance.guide(make_step(2, next_alpha=alpha), alpha * z, GuidanceContext(), None)
    torch.testing.assert_close(scaled / alpha, plain, rtol=1e-4, atol=1e-4)
    assert (plain - z).abs().max() > 0.1


def test_the_published_schedule_of_fifty_steps():
    steps = [make_step(0, 50, stage_step=k, stage_num_steps=50) for k in range(50)]
    gammas = [gamma_at(Attentive(), step) for step in steps]
    assert gammas[:3] == [0.0] * 3
    assert gammas[3] == 0.004
    assert gammas[3:] == sorted(gammas[3:], reverse=True)
    for k in range(3, 50):  # sec. 3.2, with t steps left of 50 and 3 that are not guided
        t = 50 - k
        expected = 0.004 * ((math.cos(math.pi * (50 - 3 - t) / (50 - 3)) + 1) / 2) ** 3
        assert gammas[k] == pytest.approx(expected, abs=1e-12)
    assert 0 < gammas[-1] < 1e-9


@pytest.mark.parametrize("num_steps", [1, 2, 7, 100])
def test_the_schedule_is_a_share_of_any_number_of_steps(num_steps):
    steps = [make_step(0, num_steps, stage_step=k, stage_num_steps=num_steps) for k in range(num_steps)]
    first = math.floor(0.06 * num_steps + 0.5)
    gammas = [gamma_at(Attentive(), step) for step in steps]
    assert gammas[:first] == [0.0] * first and gammas[first] == 0.004


@pytest.mark.parametrize(("delay", "until", "guided"), [(0.06, 1.0, range(3, 50)), (0.06, 0.38, range(3, 19))])
def test_the_schedule_of_the_authors_code(delay, until, guided):
    """Half a cosine from 0 to pi over as many points as steps are guided; in their notebook those are 16 of 50."""
    steps = [make_step(0, 50, stage_step=k, stage_num_steps=50) for k in range(50)]
    points = torch.linspace(0, math.pi, len(guided), dtype=torch.float64)
    theirs = dict(zip(guided, (0.004 * ((points.cos() + 1) / 2) ** 3).tolist(), strict=True))
    gammas = [gamma_at(Attentive(delay=delay, until=until, decay="to-zero"), step) for step in steps]
    assert gammas == pytest.approx([theirs.get(k, 0.0) for k in range(50)], abs=1e-12)
    assert gammas[guided[-1]] == 0.0
    flat = [gamma_at(Attentive(delay=delay, until=until, power=0.0), step) for step in steps]
    assert flat == [0.004 if k in guided else 0.0 for k in range(50)]


def test_a_range_of_no_step_is_refused_and_one_step_has_the_whole_scale():
    with pytest.raises(ValueError, match="more than 'delay'"):
        Attentive(delay=0.5, until=0.5)
    step = make_step(0, 10, stage_step=1, stage_num_steps=10)
    assert gamma_at(Attentive(delay=0.1, until=0.2, decay="to-zero"), step) == 0.004


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_step_knows_the_scales_that_its_latents_have_after_it(name, kind):
    """With a network that knows the picture they are ``alpha x0 + sigma noise`` after every call of a scheduler."""
    clean, noise = (Streams(0).normal((1, 4, 64, 64), name) for name in ("clean", "noise"))
    stepper = Stepper(new_scheduler(name, prediction_type=kind, skip_prk_steps=True), 8)
    steps, generator = stepper.schedule.steps([len(stepper.timesteps)]), Streams(0).generator("step-noise")
    x = steps[0].alpha * clean + steps[0].sigma * noise
    for step in steps:
        said = Prediction(x, torch.zeros_like(x), step).with_clean(clean)
        stepper.scale(x, step.index)
        x = stepper.step(said.model_output, step.index, x, generator)
        if step is not steps[-1]:
            expected = step.next_alpha * clean + step.next_sigma * noise
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4 * (step.next_alpha + step.next_sigma))
    assert (steps[-1].next_alpha, steps[-1].next_sigma) == (1.0, 0.0)
    assert float((x - clean).std()) < 0.05


@pytest.mark.parametrize("name", FORMS)
def test_every_scheduler_has_its_latents_attended_in_one_form(name):
    """The last two of three steps: a run with the guidance against one whose latents are moved by hand."""
    guidance = {"type": "attentive", "scale": 0.5, "delay": 0.4, "power": 0.0}
    guided = toy_sampler(WHOLE | {"guidance": [guidance]}, scheduler=new_scheduler(name))
    steps, moved = Stepper(new_scheduler(name), 3).schedule.steps([3]), []

    def move(_, index, timestep, state):
        if index == 0:  # before the delay's end
            return {}
        exploding = state["latents"] / steps[index].next_alpha
        moved.append(index)
        return {"latents": 0.5 * (exploding + by_matrix(exploding)) * steps[index].next_alpha}

    by_hand = sample(toy_sampler(WHOLE, scheduler=new_scheduler(name)), NATIVE, 3, callback_on_step_end=move)
    torch.testing.assert_close(sample(guided, NATIVE, 3), by_hand, rtol=1e-3, atol=1e-3)
    assert moved == [1, 2]
    assert (sample(toy_sampler(WHOLE, scheduler=new_scheduler(name)), NATIVE, 3) - by_hand).abs().max() > 0.01
