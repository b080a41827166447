"""What a dataflow's plan says: who overlaps whom, which micro-batches that makes, and which stages need a barrier."""

import pytest
import torch
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from schedulers import new_scheduler
from toy import DETAIL, STRUCTURE, toy_sampler
from vitrail import hookimpl
from vitrail.backbones.analytic import AnalyticBackbone
from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.asked import AskedEntry
from vitrail.core.engine.dataflow_plan import exchange_text, goes_apart, needs_barrier, needs_of, overlaps, units_of
from vitrail.core.engine.independent_ranks import ranks_are_independent
from vitrail.core.engine.micro_batches import split_rows
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.method.backbone import ForwardCaching
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.sampler import Sampler

RUN = RunConfig(prompt="", height=128, width=128, num_inference_steps=6)
WINDOWS = st.sampled_from(
    [
        Windows(overlap=0.5, jitter=True),
        Windows(overlap=0.5, jitter=True, border="leave"),
        Windows(overlap=0.25, jitter=True, tail="shift"),
        Windows(overlap=0.0, grid="moving"),
        Windows(overlap=0.0, context=0.5),
    ]
)


class Predicting:
    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        return (yield)


def cells_of(view, written):
    canvas = torch.zeros(1, 1, 20, 22)
    for piece in view.written if written else view.pieces:
        canvas[..., piece.rows, piece.cols] = 1
    return canvas > 0


@given(windows=WINDOWS, wrap=st.sampled_from(["none", "x", "xy"]), seed=st.integers(0, 99))
def test_views_overlap_where_one_reads_a_cell_that_the_other_writes(windows, wrap, seed):
    sampler = toy_sampler(DETAIL)
    steps = sampler.run_plan(RUN, seed).steps()
    canvas = Canvas(20, 22, 8, wrap=wrap)
    before, after = (windows.patch(step, canvas, 4, Streams(seed)).canonical().views for step in steps[:2])
    for own, found in zip(after, overlaps(after, before), strict=True):
        read = cells_of(own, written=False)
        expected = [n for n, other in enumerate(before) if bool((read & cells_of(other, written=True)).any())]
        assert list(found) == expected
        assert expected, "every view needs one at least, since views cover the canvas"


@given(views=st.integers(1, 7), branches=st.integers(1, 3), row_batch=st.integers(1, 9))
def test_units_are_the_micro_batches_that_rows_are_split_into(views, branches, row_batch):
    entries = [AskedEntry(View(Span(n, 1), Span(0, 1))) for n in range(views)]
    names = ("uncond", "cond", "damped")[:branches]
    batches = split_rows(entries, torch.zeros(views, 1, 1, 1, 1), names, row_batch)
    shown = [tuple(sorted({view.vertical.start for view in batch.views})) for batch in batches]
    assert shown == list(units_of(views, branches, row_batch))


def test_a_micro_batch_needs_all_rows_of_the_views_that_its_views_touch():
    halves = units_of(3, 2, 1)
    assert needs_of(((0,), (1, 2)), halves, [[0], [0, 1], [2]]) == ((0, 1), (0, 1, 2, 3, 4, 5))


STAGES = {
    "": DETAIL,
    "further groups": {**DETAIL, "extra_views": [{"patching": {"type": "lattice"}, "fusion": "scatter"}]},
    "guidance acts": {key: value for key, value in STRUCTURE.items() if key != "until"},
    "not cellwise": {"patching": {"type": "lattice", "views": "key"}, "fusion": "broadcast"},
    "done again": {**DETAIL, "repeat": {"times": 1}},
    "scaled by their number": {**DETAIL, "scale_batch": 1},
    "one view": {"patching": "whole", "fusion": "average"},
    "swap values": {"patching": {"type": "lattice", "interaction": "element"}, "fusion": "scatter"},
}


@pytest.mark.parametrize("reason", STAGES)
def test_the_plan_says_which_stage_needs_a_barrier_and_why(reason):
    plan = toy_sampler(STAGES[reason]).run_plan(RUN, 0)
    step = plan.steps()[0]
    found = needs_barrier(plan, step)
    assert bool(found) == bool(reason) and reason in found
    assert (found or "no barrier between steps") in exchange_text(plan, step)


def test_a_scheduler_that_looks_at_the_whole_canvas_keeps_the_barrier():
    scheduler = new_scheduler("DDIMScheduler", thresholding=True)
    plan = toy_sampler(DETAIL, scheduler=scheduler).run_plan(RUN, 0)
    assert "thresholds" in needs_barrier(plan, plan.steps()[0])


def test_a_plugin_that_reads_the_canvas_keeps_the_barrier():
    class Watch:
        @hookimpl
        def vitrail_step_end(self, step, latents):
            pass

    plan = toy_sampler(DETAIL, plugins=[("watch", Watch())]).run_plan(RUN, 0)
    assert "plugin" in needs_barrier(plan, plan.steps()[0])


def test_a_plugin_that_watches_forwards_keeps_the_barrier():
    plan = toy_sampler(DETAIL, plugins=[("watch", Predicting())]).run_plan(RUN, 0)
    assert "plugin watches forwards" in needs_barrier(plan, plan.steps()[0])


def test_a_network_that_remembers_earlier_forwards_keeps_the_barrier():
    @frozen(eq=False, kw_only=True)
    class Remembering(AnalyticBackbone):
        def remembers(self):
            return ForwardCaching(where="a cache", by_name=True, remedy="leave it out")

    sampler = toy_sampler(DETAIL)
    own = Remembering(prior=sampler.backbone.prior, scheduler=sampler.backbone.scheduler, native_size=8)
    plan = Sampler(own, sampler.composition, model="analytic").run_plan(RUN, 0)
    assert needs_barrier(plan, plan.steps()[0]) == "its network remembers earlier forwards"


def test_a_callback_keeps_the_barrier():
    plan = toy_sampler(DETAIL).run_plan(RUN, 0)
    assert "since a callback reads the canvas" in exchange_text(plan, plan.steps()[0], watched=True)


@pytest.mark.parametrize("patching", [{"type": "windows", "overlap": 0.0}, {"type": "lattice", "interaction": "none"}])
def test_windows_side_by_side_flow_where_that_is_asked_for_and_can_be(patching):
    stage = {"patching": patching, "fusion": "scatter"}
    plan = toy_sampler(stage).run_plan(RUN, 0)
    step = plan.steps()[0]
    assert ranks_are_independent(plan, step) and goes_apart(plan, step, flows=False)
    assert goes_apart(plan, step, flows=True) == (patching["type"] == "lattice")
    watched = toy_sampler(stage, plugins=[("watch", Predicting())]).run_plan(RUN, 0)
    assert goes_apart(watched, step, flows=True), "what cannot flow keeps its way"
