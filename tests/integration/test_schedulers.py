"""Every scheduler of diffusers drives a whole run, the stochastic and multistep ones too."""

import inspect
import itertools

import diffusers
import pytest
import torch

from often import THOROUGH, every
from schedulers import READ, STOCHASTIC, new_scheduler
from toy import ASG, DETAIL, NATIVE, STRUCTURE, VARIANCE, sample, smooth_templates, toy_sampler
from vitrail.backbones.loading.source import check_scheduler
from vitrail.comm import InProcess
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.errors import ConfigError
from vitrail.sampling.sampler import Spread

WHOLE = {"patching": "whole", "fusion": "average"}
TEMPLATES = smooth_templates(4, NATIVE)


def run(name, *stages, kind="epsilon", templates=None, **options):
    scheduler = new_scheduler(name, prediction_type=kind)
    return sample(toy_sampler(*stages, scheduler=scheduler, templates=templates), **({"steps": 8} | options))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", every(2, READ))
def test_a_guided_run_of_two_stages_ends_in_a_picture(name, kind):
    final = run(name, kind=kind, size=3 * NATIVE)
    assert final.shape == (1, 4, 24, 24)
    assert 0.3 < float(final.std()) < 2.0  # the prior has unit size


@pytest.mark.parametrize("name", READ)
def test_plain_sampling_ends_in_a_template(name):
    """The detail of the prior is all that may lie between them."""
    final = run(name, WHOLE, size=NATIVE, steps=12)
    assert float((final - TEMPLATES).square().mean((1, 2, 3)).min()) < 4 * VARIANCE  # they are at 1.5 from each other


@pytest.mark.parametrize("name", every(2, READ))
def test_a_run_repeats_itself_and_hangs_on_its_seed_alone(name):
    first = run(name, seed=5)
    torch.manual_seed(99)
    assert torch.equal(run(name, seed=5), first)
    assert not torch.equal(run(name, seed=6), first)


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_step_noise_does_not_depend_on_micro_batches(name):
    for stages in (ASG, (DETAIL,)):
        wide = run(name, *stages, row_batch=64)
        for row_batch in (1, 3):
            torch.testing.assert_close(run(name, *stages, row_batch=row_batch), wide, rtol=1e-5, atol=1e-5)


TAKEN = [  # numbers that a step takes, one that is its default and one that is not
    ("DDIMScheduler", {"eta": 0.0}, {"eta": 1.0}),
    ("TCDScheduler", {"eta": 0.3}, {"eta": 1.0}),
    ("EulerDiscreteScheduler", {"solver_args": {"s_churn": 0.0}}, {"solver_args": {"s_churn": 2.0}}),
    ("FlowMatchEulerDiscreteScheduler", {"solver_args": {}}, {}),
]


@pytest.mark.parametrize(("name", "default", "other"), TAKEN)
def test_a_default_of_the_step_changes_no_bit_and_another_is_the_same_on_three_ranks(name, default, other):
    plain = run(name, *ASG)
    assert torch.equal(run(name, *ASG, **default), plain)
    alone = run(name, *ASG, **other)
    assert torch.equal(alone, plain) != bool(other)

    def program(communicator):
        return run(name, *ASG, **other, spread=Spread(communicator=communicator))

    assert all(torch.equal(each, alone) for each in InProcess(timeout=600).run(3, program))


def test_eta_of_a_run_is_that_of_the_step():
    """A scheduler whose step has another default gives the same bits; half of it another picture."""

    class Eager(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, eta=1.0, generator=None, return_dict=True):
            return super().step(model_output, timestep, sample, eta, False, generator, None, return_dict)

    plain = new_scheduler("DDIMScheduler")
    eager = sample(toy_sampler(DETAIL, scheduler=Eager.from_config(plain.config)), steps=8)
    assert torch.equal(run("DDIMScheduler", DETAIL, eta=1.0), eager)
    assert not torch.equal(run("DDIMScheduler", DETAIL, eta=0.5), eager)


@pytest.mark.parametrize("name", READ)
def test_an_option_of_a_step_changes_the_picture_or_is_refused_by_name_before_any_step(name):
    """Some steps have a parameter that they never read, which would be ignored."""
    plain = run(name, DETAIL)
    for options in ({"eta": 0.5}, {"solver_args": {"s_churn": 0.5}}):
        option = next(iter(options.get("solver_args", options)))
        if is_taken(name, option):
            assert not torch.equal(run(name, DETAIL, **options), plain)
            continue
        told = f"{option}: the step of {name} takes no such option"
        with pytest.raises(ConfigError, match=told):
            check_scheduler(name, {option: 0.5})
        with pytest.raises(ConfigError, match=told):
            run(name, DETAIL, **options)


def is_taken(name, option):
    try:
        check_scheduler(name, {option: 0.5})
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("fusion", ["average", "gaussian"])
@pytest.mark.parametrize("name", every(2, READ))
def test_windows_over_a_network_that_ignores_neighbours_are_plain_sampling(name, fusion):
    """With one step on the canvas. Views that were stepped apart would average their step noise away."""
    each_cell_alone = torch.tensor([1.0, -1.0, 0.5, 2.0]).view(1, 4, 1, 1)
    windows = {"patching": {"type": "windows", "overlap": 0.75, "jitter": True}, "fusion": fusion}
    plain = run(name, WHOLE, templates=each_cell_alone)
    torch.testing.assert_close(run(name, windows, templates=each_cell_alone), plain, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- the ends of schedules

FROM_NOISE_ALONE = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SPACINGS = ({}, {"use_flow_sigmas": True}, {"timestep_spacing": "trailing"}, FROM_NOISE_ALONE)
TAKES = {name: inspect.signature(getattr(diffusers, name).__init__).parameters.keys() for name in READ}
SCHEDULES = [(name, options) for name in READ for options in SPACINGS if options.keys() <= TAKES[name]]
FORMS = ("x0", "literal", "reversed", "cfg-like")


def kinds(name, options):
    """Prediction types to try; a flow has its own, and not every scheduler knows ``sample``."""
    if "Flow" in name or "use_flow_sigmas" in options:
        return ["flow_prediction"]
    return ["v_prediction", "sample"] if name.startswith("DD") else ["v_prediction"]


def guided(form):
    """Structure guidance of every step, so that the ends are among them."""
    apart = {k: v for k, v in STRUCTURE.items() if k != "until"}
    return {**apart, "guidance": [{"type": "sync", "scale": 0.5, "form": form}]}


@pytest.mark.parametrize(("name", "options"), every(2, SCHEDULES), ids=[f"{n}-{'-'.join(o)}" for n, o in SCHEDULES])
def test_every_form_of_guidance_is_finite_at_the_ends_of_every_schedule(name, options):
    runs = [(form, 1) for form in FORMS if name != "PNDMScheduler"]  # which cannot do a single step
    runs += [("literal", 4)] if THOROUGH or not runs else []
    for kind, (form, steps) in itertools.product(kinds(name, options), runs):
        scheduler = new_scheduler(name, prediction_type=kind, **options)
        final = sample(toy_sampler(guided(form), scheduler=scheduler), steps=steps)
        assert final.isfinite().all(), (kind, steps, form)


@pytest.mark.parametrize(
    ("name", "options"), [("FlowMatchEulerDiscreteScheduler", {}), ("DDIMScheduler", FROM_NOISE_ALONE)]
)
def test_some_of_these_schedules_do_begin_with_noise_alone(name, options):
    """The test above would hold of schedules that stay away from the ends, too."""
    scheduler = new_scheduler(name, prediction_type="v_prediction", **options)
    for steps in (1, 3):
        assert Stepper(scheduler, steps).schedule.alphas[0] == 0


def test_the_nearest_timestep_of_noise_alone_is_the_last():
    schedule = Stepper(new_scheduler("DDIMScheduler", prediction_type="v_prediction", **FROM_NOISE_ALONE), 3).schedule
    (step,) = schedule.steps([1])
    assert schedule.step_at(step, 0.0, 0.5).timestep == 999
    assert schedule.step_at(step, 1.0, 0.0).timestep == 0
