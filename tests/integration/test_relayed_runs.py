"""Sizes that share one schedule: what one hands to the next, what is counted, what checkpoints and callbacks keep."""

import pytest
import torch
import torch.nn.functional as F
from test_cascades import WHOLE, Starts, cascade, grown_by_hand
from test_checkpoint import Ender, PowerCutError

from tiny import in_double
from tiny_families import FAMILIES
from vitrail import hookimpl
from vitrail.core.config.run_config import RunConfig
from vitrail.core.schedule.phase import relayed_first
from vitrail.core.schedule.prediction import Prediction
from vitrail.errors import CapabilityError, ConfigError
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread

METHODS = ("megafusion", "megafusion-plus")
CALL = {"height": 128, "width": 128, "num_inference_steps": 10, "output_type": "latent", "seed": 3}


class Predictions:
    """The clean latents that every step predicted."""

    def __init__(self):
        self.clean = {}

    @hookimpl
    def vitrail_step_end(self, step, prediction: Prediction):
        self.clean[step.index] = prediction.clean.clone()


@pytest.mark.parametrize("method", [*METHODS, "fouriscale"])
def test_at_the_training_size_it_is_direct_bit_for_bit(pipe, method):
    call = CALL | {"height": 64, "width": 64}
    direct = Sampler.from_pipeline(pipe, "direct")("a fox", **call)
    own = Sampler.from_pipeline(pipe, method)("a fox", **call)
    assert torch.equal(own.latents, direct.latents)
    assert own.report.model_calls == direct.report.model_calls == 20
    larger = {name: Sampler.from_pipeline(pipe, name)("a fox", **CALL).latents for name in (method, "direct")}
    assert not torch.equal(larger[method], larger["direct"])


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_size_begins_with_the_clean_prediction_of_the_one_before_and_the_noise_of_the_next_step(pipe, scheduler):
    """In pixels and then, by hand, with the scales of the step at which the larger size begins."""
    pipe, starts, seen = in_double(pipe), Starts(), Predictions()
    sampler = Sampler.from_pipeline(pipe, "megafusion", plugins=[("starts", starts), ("seen", seen)])
    config = RunConfig(prompt="", height=128, width=128, num_inference_steps=10, seed=3, scheduler=scheduler)
    engine = sampler.engine(config, 3)
    steps = engine.plan.steps()
    assert [(step.phase, step.phase_step) for step in steps] == [(int(k >= 8), k) for k in range(10)]
    sampler("a fox", scheduler=scheduler, **CALL)
    with torch.no_grad():
        grown = grown_by_hand(pipe, "pixels", seen.clean[7].to(starts.before[7].dtype), (128, 128))
    noise = engine.streams.normal(tuple(grown.shape), "phase-noise", 1)
    torch.testing.assert_close(starts.before[8], steps[8].alpha * grown + steps[8].sigma * noise, rtol=1e-4, atol=1e-4)


def test_rescheduled_sizes_begin_with_twice_the_noise_at_twice_the_side(pipe):
    config = RunConfig(prompt="", height=128, width=128)
    plans = [Sampler.from_pipeline(pipe, method).engine(config, 0).plan for method in METHODS]
    for before, after in zip(*(plan.steps() for plan in plans), strict=True):
        assert after.timestep == before.timestep
        assert after.noise_level == pytest.approx((1 + before.phase) * before.noise_level, rel=1e-3)


def test_the_means_of_a_rescheduled_size_are_a_training_picture_at_its_timestep(pipe):
    """White noise over 2 x 2 cells: what is told of a timestep is true of the means."""
    plan = Sampler.from_pipeline(pipe, "megafusion-plus").engine(RunConfig(prompt="", height=512, width=512), 0).plan
    phase, told = plan.phases[-1], plan.phases[0].stepper.schedule
    clean = torch.zeros(1, 4, 64, 64)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    index = phase.first
    means = F.avg_pool2d(phase.stepper.noised(clean, noise, index), 8)
    assert means.std() == pytest.approx(told.sigmas[index] / told.alphas[index], rel=0.1)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("method", [*METHODS, "fouriscale"])
def test_what_is_foreseen_is_what_is_counted(pipe, method, scheduler):
    sampler = Sampler.from_pipeline(pipe, method)
    config = RunConfig(prompt="a fox", height=136, width=200, num_inference_steps=6, scheduler=scheduler)
    cost, report = sampler.plan(config).cost, sampler.run(config).report
    counted = (report.model_calls, report.vae_decodes, report.vae_encodes)
    assert counted == (cost.model_calls, cost.decodes, cost.encodes)
    assert bool(sampler("a fox", **CALL | {"scheduler": scheduler}).latents.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [7, 8])
def test_a_run_goes_on_where_one_size_hands_over(pipe, tmp_path, method, at):
    """The checkpoint after the last step of a size has what it hands over."""
    whole = Sampler.from_pipeline(pipe, method)("a fox", **CALL).latents
    spread = Spread(checkpoint=tmp_path / "run.ckpt", checkpoint_every=1)
    with pytest.raises(PowerCutError):
        Sampler.from_pipeline(pipe, method, plugins=[("ender", Ender(at + 1))])("a fox", spread=spread, **CALL)
    assert torch.equal(Sampler.from_pipeline(pipe, method)("a fox", spread=spread, **CALL).latents, whole)


def test_what_a_callback_gives_at_the_last_step_of_a_size_is_what_grows(pipe):
    def replaced(pipe, index, timestep, state):
        return {"latents": torch.zeros_like(state["latents"])} if index == 7 else {}

    def kept(pipe, index, timestep, state):
        return {"latents": state["latents"].clone()}

    sampler = Sampler.from_pipeline(pipe, "megafusion")
    plain = sampler("a fox", **CALL).latents
    assert torch.equal(sampler("a fox", callback_on_step_end=kept, **CALL).latents, plain)
    assert not torch.equal(sampler("a fox", callback_on_step_end=replaced, **CALL).latents, plain)


# shares of a schedule


@pytest.mark.parametrize(
    ("strength", "count", "steps", "order", "firsts"),
    [
        (0.2, 1, 50, 1, [40]),  # SDXL
        (0.2, 2, 50, 1, [40, 45]),  # SD 1.5, by 512, 768 and 1024 pixels
        (8 / 28, 1, 28, 1, [20]),  # SD 3
        (0.2, 2, 50, 2, [80, 90]),
        (0.2, 3, 5, 1, [2, 3, 4]),
        (0.1, 3, 100, 1, [90, 93, 97]),
    ],
)
def test_further_sizes_part_the_share_as_published(strength, count, steps, order, firsts):
    assert [relayed_first(strength, number + 1, count, steps, order) for number in range(count)] == firsts


@pytest.mark.parametrize("strength", [0.01, 0.2, 0.5, 0.9])
def test_every_size_has_a_step_at_least(strength):
    for count in range(1, 6):
        for steps in range(count + 1, 40):
            try:
                firsts = [relayed_first(strength, number, count, steps, 1) for number in range(1, count + 1)]
            except ConfigError:
                continue
            assert firsts == sorted(set(firsts)) and firsts[0] >= 1 and firsts[-1] < steps


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"num_inference_steps": 1}, "2 sizes share 1 steps, and strength 0.2 leaves none of them for the first"),
        ({"strength": 0.1, "image": torch.zeros(1, 3, 128, 128)}, "has no step to do; raise the run's strength"),
    ],
)
def test_a_size_without_steps_is_refused_before_a_model_call(pipe, call, told):
    with pytest.raises(ConfigError, match=told):
        Sampler.from_pipeline(pipe, "megafusion")("a fox", **CALL | call)


def test_several_shares_are_refused():
    with pytest.raises(ConfigError, match="'strength' has 2; give one, or leave relay out"):
        cascade(WHOLE | {"enter": {"relay": True, "strength": [0.2, 0.1]}})


# families that cannot serve


def test_what_a_transformer_cannot_do_is_refused_by_slot_and_the_rest_is_not():
    pipe = FAMILIES["sd3"]()
    with pytest.raises(
        CapabilityError, match=r"stages\.1\.rectification\.0: .* needs 'convolutions'(?s:.*)another model"
    ):
        Sampler.from_pipeline(pipe, "megafusion-plus")
    rescheduled = load_method("megafusion", ["stages.1.enter.reschedule=true"])
    with pytest.raises(CapabilityError, match=r"enter\.reschedule .* set enter\.reschedule = false"):
        Sampler.from_pipeline(pipe, rescheduled)("a fox", **CALL)


@pytest.mark.parametrize(
    "stage", [{"patching": "windows"}, WHOLE | {"guidance": [{"type": "upsample", "scale": 1.0}]}], ids=str
)
def test_more_noise_is_refused_where_the_network_sees_parts_or_copies(pipe, stage):
    """Those of the training size have the noise that it knows there."""
    enter = {"enter": {"relay": True, "strength": [0.5], "reschedule": True}}
    with pytest.raises(ConfigError, match=r"stage 2: enter\.reschedule gives the noise .* set enter\.reschedule = fal"):
        Sampler.from_pipeline(pipe, cascade({"fusion": "average"} | stage | enter))("a fox", **CALL)
