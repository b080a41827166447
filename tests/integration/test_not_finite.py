"""Values that are not finite: the message names step, view, branch and pixels, or the part that made them."""

import re
from typing import ClassVar

import pytest
import torch
from attrs import evolve, frozen
from test_ranks import APART, SYNC

from schedulers import new_scheduler
from tiny_families import FAMILIES
from toy import ASG, DETAIL, sample, toy_sampler
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import PredictionError
from vitrail.sampling.sampler import Sampler, Spread

CALL = {"height": 128, "width": 96, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
RANKS = InProcess(timeout=600)
WINDOWS = {"patching": {"type": "windows", "overlap": 0.5}, "fusion": "average"}


class Planted:
    """Makes one row of one view infinite at a step."""

    def __init__(self, view, branch="cond", step=1):
        self.view, self.branch, self.step = view, branch, step

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        answer = yield
        output = answer.model_output.clone()
        for i, (view, branch) in enumerate(zip(rows.views, rows.branches, strict=True)):
            if (step.index, view, branch) == (self.step, self.view, self.branch):
                output[i, 0, 0, 0] = float("nan")
        return evolve(answer, model_output=output)


def on_ranks(make, count, plugins=lambda rank: (), **call):
    """Results by rank of a toy run; every rank has a sampler of its own."""

    def program(communicator):
        own = toy_sampler(*make, plugins=plugins(communicator.rank))
        return sample(own, row_batch=4, guidance_scale=2.0, spread=Spread(communicator=communicator), **call)

    with torch.inference_mode():
        return RANKS.run(count, program)


def complaint(function, *args, **kwargs):
    with pytest.raises(PredictionError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def main_views(sampler, **call):
    run = RunConfig(prompt="", **{"height": 128, "width": 128, "num_inference_steps": 4, **call})
    engine = sampler.engine(run, 0)
    return engine.plan.patches(engine.plan.steps()[0])[0].views


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_a_prediction_that_is_not_finite_names_view_branch_and_step(branch):
    view = main_views(toy_sampler(WINDOWS))[3]
    told = complaint(sample, toy_sampler(WINDOWS, plugins=[("nan", Planted(view, branch))]), guidance_scale=2.0)
    assert told.startswith("step 2 of 4 (stage 1, timestep ")
    where = r"view 3 of 9 \(rows 4-11, columns 0-7; pixels 32-95 x 0-63\)"
    assert re.search(rf"first: the network's prediction of {where}, branch {branch}; try float32", told), told


def test_a_view_of_a_lattice_is_named_by_its_offset_and_stride():
    view = main_views(toy_sampler(APART, DETAIL))[3]
    told = complaint(sample, toy_sampler(APART, DETAIL, plugins=[("nan", Planted(view))]))
    assert "view 3 of 4 (rows 1-15, columns 1-15, every 2 by 2; pixels 8-127 x 8-127), branch cond" in told


def test_the_clean_copy_of_the_key_view_is_told_from_it():
    lattice = {"type": "lattice", "interaction": "element", "key": "extra"}
    stages = ({**APART, "patching": lattice}, DETAIL)
    view = main_views(toy_sampler(*stages))[0]
    told = complaint(sample, toy_sampler(*stages, plugins=[("nan", Planted(view))]))
    assert "prediction of view 0 of 4 (" in told and "; of the clean copy of view 0 of 4 (" in told


def test_many_views_are_counted():
    nan = float("nan")

    class Broken:
        @hookimpl(wrapper=True)
        def vitrail_predict(self):
            answer = yield
            return evolve(answer, model_output=answer.model_output * nan)

    told = complaint(sample, toy_sampler(WINDOWS, plugins=[("nan", Broken())]), guidance_scale=2.0)
    assert told.count("branch") == 4 and "; and of 14 more; try" in told


@pytest.mark.parametrize("view", range(4))
@pytest.mark.parametrize(
    "stages", [(APART, DETAIL), (SYNC, DETAIL), ASG], ids=["async apart", "sync apart", "exchange"]
)
def test_ranks_name_the_same_view_wherever_it_is_predicted(stages, view):
    found = main_views(toy_sampler(*stages))[view]
    plant = [("nan", Planted(found, step=0))]
    told = complaint(on_ranks, stages, 3, lambda rank: plant, size=16)
    where = f"first: the network's prediction of view {view} of 4 (rows "
    by_message = "first: the message of the key view, which another rank may have"
    assert where in told or (view == 0 and by_message in told), told
    assert "step 1 of 4" in told


def test_the_overflow_of_a_network_in_half_precision_names_its_view():
    """One corner of the canvas is bright enough for the first convolution to leave float16."""
    pipe = FAMILIES["sd"]()
    sampler = Sampler.from_pipeline(pipe, "multidiffusion")
    noise = torch.zeros(1, 4, 16, 12)
    noise[..., :3, :3] = 300.0  # the scheduler's first sigma makes it some thousands, its input scale 300 again
    call = CALL | {"latents": noise, "scheduler": "DDIMScheduler", "row_batch": 3}
    with torch.no_grad():
        pipe.unet.conv_in.weight[0] = 40.0
    assert sampler("a fox", **call).latents.isfinite().all()
    pipe.unet.half()
    told = complaint(sampler, "a fox", **call)
    assert "step 1 of 3" in told and "prediction of view 0 of " in told
    assert "rows 0-7, columns 0-7; pixels 0-63 x 0-63), branch uncond; of view 0" in told
    assert "view 1" not in told and "try float32 or bfloat16" in told


@frozen
class Exploding:
    """Guidance that gives no number at one point."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: str

    def init(self):
        return None

    def guide(self, step, subject, scene, state):
        if self.point in ("before", "after"):
            return subject / 0, state
        return evolve(subject, model_output=subject.model_output / 0), state


@pytest.mark.parametrize("point", ["views", "canvas", "before", "after"])
def test_guidance_is_blamed_where_the_network_is_not_at_fault(point):
    sampler = toy_sampler(WINDOWS)
    stage = evolve(sampler.composition.stages[0], guidance=[Exploding(point)])
    guided = Sampler(sampler.backbone, evolve(sampler.composition, stages=[stage]), model="analytic")
    told = complaint(sample, guided)
    assert "step 1 of 4" in told and "first: guidance Exploding" in told
    assert ("of view 0 of 9 (" in told) == (point == "views")


def test_too_much_classifier_free_guidance_is_blamed():
    class Apart:
        @hookimpl(wrapper=True)
        def vitrail_predict(self, rows):
            answer = yield
            signs = torch.tensor([1.0 if branch == "cond" else -1.0 for branch in rows.branches])
            return evolve(answer, model_output=answer.model_output.abs() * signs[:, None, None, None])

    told = complaint(sample, toy_sampler(WINDOWS, plugins=[("apart", Apart())]), guidance_scale=1e38)
    assert "first: classifier-free guidance of view" in told


def test_the_scheduler_is_blamed_for_its_own_step():
    scheduler = new_scheduler("EulerDiscreteScheduler")

    class Broken(type(scheduler)):
        def step(self, *args, **kwargs):
            stepped, *rest = super().step(*args, **kwargs)
            return stepped / 0, *rest

    told = complaint(sample, toy_sampler(WINDOWS, scheduler=Broken.from_config(scheduler.config)))
    assert "first: the scheduler's step; try another scheduler" in told


def test_what_a_callback_gave_back_is_blamed_one_step_later():
    def spoil(caller, index, timestep, kwargs):
        return {"latents": kwargs["latents"] / 0} if index == 1 else {}

    told = complaint(sample, toy_sampler(WINDOWS), callback_on_step_end=spoil)
    assert "step 3 of 4" in told and "first: what it began with; look at the callback" in told
