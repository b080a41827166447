"""What reproduces the authors' code where it differs from what is right: off unless it is asked for."""

import math

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve, frozen

from schedulers import new_scheduler
from tiny_families import FAMILIES
from toy import NATIVE, sample, toy_sampler
from vitrail import hookimpl
from vitrail.comm import InProcess
from vitrail.core.config.loader import Loader
from vitrail.core.config.run_config import RunConfig
from vitrail.core.geometry.views import Canvas, Span, View
from vitrail.core.method.composition import Composition
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.schedule.noise_schedule import Stepper
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.plugins.patching.windows import Windows
from vitrail.sampling.discovery import build_registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler, Spread
from vitrail.testing import check_cover, check_patching, make_step

WINDOWS = {
    "patching": {"type": "windows"},
    "fusion": "average",
    "extra_views": [{"patching": {"type": "dilated"}, "fusion": "scatter", "weight": 0.5}],
}
CALL = {"height": 128, "width": 128, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}


class Shown:
    """What the network is shown at one step, view by view, (step of the view's lattice, input)."""

    def __init__(self, index=0):
        self.inputs, self.views, self.canvas, self.index = [], [], None, index

    @hookimpl(wrapper=True)
    def vitrail_predict(self, step, rows):
        if step.index == self.index:
            self.inputs += [(view.vertical.step, row) for view, row in zip(rows.views, rows.model_input, strict=True)]
            self.views += rows.views
        return (yield)

    @hookimpl
    def vitrail_step_end(self, step, prediction):
        if step.index == self.index:
            self.canvas = prediction.latents


@pytest.mark.parametrize(("index", "factor"), [(10, 1.087), (24, 1.048), (40, 1.019)])
def test_the_published_factors_of_a_scale_that_came_too_early(index, factor):
    scheduler = new_scheduler("EulerDiscreteScheduler")
    stepper = Stepper(scheduler, 50)
    assert stepper.scale_ratio(index) == pytest.approx(factor, abs=5e-4)
    own, following = (math.sqrt(float(scheduler.sigmas[i]) ** 2 + 1) for i in (index, index + 1))
    assert stepper.scale_ratio(index) == pytest.approx(own / following)


@pytest.mark.parametrize("row_batch", [1, 4])
def test_views_after_the_first_batch_and_further_families_have_the_scale_of_the_next_step(row_batch):
    def shown(**options):
        seen = Shown()
        sampler = toy_sampler(WINDOWS | options, plugins=[("shown", seen)])
        return sample(sampler, row_batch=row_batch), seen.inputs

    (plain, right), (parity, wrong) = shown(), shown(scale_batch=4)
    scheduler = new_scheduler("EulerDiscreteScheduler")
    stepper = Stepper(scheduler, 4)
    ratio = stepper.scale_ratio(0)
    assert ratio > 1.1 and len(right) == len(wrong) == 9 + 4
    for number, ((stride, own), (_, theirs)) in enumerate(zip(right, wrong, strict=True)):
        expected = own if number < 4 and stride == 1 else own * ratio
        torch.testing.assert_close(theirs, expected)
    assert not torch.allclose(plain, parity, atol=1e-2)


def test_windows_are_counted_as_they_are_laid_out_also_where_jitter_sorts_them_otherwise():
    """The authors' batches are of the grid's rows, whose windows stand at other heights."""
    table = WINDOWS | {"patching": {"type": "windows", "overlap": 0.75, "jitter": True}}
    shown = [Shown(), Shown()]
    for seen, options in zip(shown, ({}, {"scale_batch": 6}), strict=True):
        sample(toy_sampler(table | options, plugins=[("shown", seen)]), 3 * NATIVE)
    laid = toy_sampler(table).engine(run_of(3 * NATIVE), 0).plan
    step = laid.steps()[0]
    grid = laid.hooks.patch(step, laid.canvas, 0).views
    ratio = Stepper(new_scheduler("EulerDiscreteScheduler"), 4).scale_ratio(0)
    numbers = [grid.index(view) for view in shown[0].views[: len(grid)]]
    assert numbers != sorted(numbers)
    for number, (_, own), (_, theirs) in zip(numbers, shown[0].inputs, shown[1].inputs, strict=False):
        torch.testing.assert_close(theirs, own if number < 6 else own * ratio)


def run_of(size):
    return RunConfig(prompt="", height=8 * size, width=8 * size, num_inference_steps=4, guidance_scale=1.0)


def test_the_first_windows_of_a_larger_size_are_not_scaled_at_its_first_step_alone():
    late = WINDOWS | {"enter": {}, "scale_batch": 4, "unscaled_start": True}
    table = {"cascade": {}, "stages": [{"patching": "whole", "fusion": "average"}, late]}
    made = Loader(build_registry()).structure(table, Composition, "test")
    stepper = Stepper(new_scheduler("EulerDiscreteScheduler"), 4)
    norms = [math.hypot(1, float(sigma)) for sigma in stepper.scheduler.sigmas[:4]]
    for index, first in ((4, 1.0), (5, norms[1])):
        shown = Shown(index)
        sample(Sampler(toy_sampler().backbone, made, model="analytic", plugins=[("shown", shown)]))
        windows = [view for view in shown.views if view.vertical.step == 1]
        assert len(windows) == 9
        for number, (view, (_, row)) in enumerate(zip(windows, shown.inputs, strict=False)):
            norm = first if number < 4 else norms[index - 4 + 1]
            torch.testing.assert_close(row, view.read(shown.canvas)[0] / norm)


LEAVING = {"type": "windows", "jitter": True, "tail": "shift"}


@pytest.mark.parametrize("wrap", ["none", "x"])
def test_windows_on_the_border_leave_it_over_zeros_and_others_stay_as_they_are(wrap):
    canvas = Canvas(20, 24, 8, wrap=wrap)
    latents = Streams(0).normal((2, 4, 20, 24), "latents")
    around = F.pad(latents, (1, 1, 1, 1))
    left = 0
    for index in range(6):
        step = make_step(index)
        held, free = (
            Windows(jitter=True, border=each).patch(step, canvas, 4, Streams(1)) for each in ("stay", "leave")
        )
        assert not check_cover(free.views, 20, 24)
        for number, (one, other) in enumerate(zip(held.views, free.views, strict=True)):
            spans = (other.vertical, 20), (other.horizontal, 24)
            assert all(span.start >= -1 and (span.length or span.start + 8 <= length + 1) for span, length in spans)
            if 0 < number // 5 < 3 and 0 < number % 5 < 4:
                assert one == other
            if any(span.leaves for span, _ in spans) and not any(span.length for span, _ in spans):
                top, side = other.vertical.start + 1, other.horizontal.start + 1
                assert torch.equal(other.read(latents), around[..., top : top + 8, side : side + 8])
                left += 1
    assert left > 3 or wrap == "x"
    check_patching(Windows(jitter=True, border="leave", tail="shift"))


def test_windows_stand_where_the_authors_have_them():
    """DemoFusion's grid: a stride of 64, the last window moved back; jitter by a quarter of 64 at most."""
    canvas, windows = Canvas(288, 192, 128), load_method("demofusion").stages[1].patching
    grid = evolve(windows, jitter=False).patch(make_step(0), canvas, 4, Streams(1)).views
    starts = [0, 64, 128, 160]  # int((288 - 128) / 64 - 1e-6) + 2 of them
    assert [(view.vertical.start, view.horizontal.start) for view in grid] == [(y, x) for y in starts for x in (0, 64)]
    free = evolve(windows, border="leave")
    moved = [free.patch(make_step(index), canvas, 4, Streams(1)).views for index in range(50)]
    shifts = [[each[n].vertical.start - view.vertical.start for each in moved] for n, view in enumerate(grid)]
    ranges = [(min(each), max(each)) for each in shifts[::2]]
    assert ranges[0] >= (-16, -8) and ranges[0][1] == 0 and ranges[-1][0] == 0 and 8 < ranges[-1][1] <= 16
    assert all(-16 <= low < -8 and 8 < high <= 16 for low, high in ranges[1:-1])


def test_a_run_whose_windows_leave_the_canvas_is_the_same_on_three_ranks():
    stages = ({"patching": "whole", "fusion": "average"}, WINDOWS | {"enter": {}, "patching": LEAVING})
    pictures = []
    for border in ("stay", "leave"):
        table = [stages[0], stages[1] | {"patching": LEAVING | {"border": border}}]
        made = Loader(build_registry()).structure({"cascade": {}, "stages": table}, Composition, "test")
        sampler = Sampler(toy_sampler().backbone, made, model="analytic")
        pictures.append(sample(sampler))
    ranks = InProcess(timeout=600).run(3, lambda c: sample(sampler.again(), spread=Spread(communicator=c)))
    assert all(torch.equal(each, pictures[1]) for each in ranks)
    assert not torch.equal(*pictures)


@frozen
class Copied:
    """Gives every view latents of its own, equal to those it had."""

    needs = frozenset()
    point = "inputs"

    def init(self):
        """No state."""

    def guide(self, step, subject, scene, state):
        """A copy."""
        return subject.clone(), state


def test_views_with_latents_of_their_own_have_that_scale_too():
    seen = []
    for guidance in ((), (Copied(),)):
        shown, sampler = Shown(), toy_sampler(WINDOWS | {"scale_batch": 4})
        stages = [evolve(stage, guidance=guidance) for stage in sampler.composition.stages]
        made = evolve(sampler.composition, stages=stages)
        sample(Sampler(sampler.backbone, made, model="analytic", plugins=[("shown", shown)]))
        seen.append(torch.stack([row for stride, row in shown.inputs if stride == 1]))
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("name", ["DDIMScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_where_no_input_is_scaled_there_is_nothing_to_scale_wrongly(name):
    def latents(**options):
        return sample(toy_sampler(WINDOWS | options, scheduler=new_scheduler(name)))

    assert torch.equal(latents(scale_batch=1), latents())


def test_crops_are_those_of_a_padded_canvas_on_the_network_that_is_told():
    pipe = FAMILIES["sdxl"]()

    def told(*sets):
        seen = []
        hook = pipe.unet.register_forward_pre_hook(
            lambda _, args, kwargs: seen.extend(kwargs["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True
        )
        try:
            latents = Sampler.from_pipeline(pipe, load_method("demofusion", sets))("a fox", **CALL).latents
        finally:
            hook.remove()
        return latents, seen

    still = "stages.1.patching.jitter=false"
    plain, usual = told(still)
    parity, padded = told(still, "stages.1.sizes={crop='padded'}")
    crops = [(y, x) for y in (0, 32, 64) for x in (0, 32, 64)]
    second = [[128, 128, *crop, 128, 128] for crop in [*crops, *[(0, 0)] * 4]]
    assert usual == [[128, 128, 0, 0, 128, 128]] * 2 + second * 2
    moved = [[128, 128, y + 8, x + 8, 128, 128] for y, x in crops] + second[9:]
    assert padded == usual[:2] + moved * 2
    assert not torch.equal(plain, parity)


def test_a_window_of_half_overlap_may_move_by_the_width_of_the_border():
    """DemoFusion's code: a quarter of 128 - 64 cells, 16, that is 128 pixels."""
    from vitrail.backbones.unet_family import time_ids

    known = {"canvas": (2048, 2048)}
    window, lattice = View(Span(64, 128), Span(0, 128)), View(Span(1, 128, 2), Span(0, 128, 2))
    padded = SizeConditioning(crop="padded")
    assert time_ids(padded, window, known, 8) == (2048, 2048, 512 + 128, 128, 2048, 2048)
    assert time_ids(SizeConditioning(), window, known, 8) == (2048, 2048, 512, 0, 2048, 2048)
    assert time_ids(padded, lattice, known, 8) == (2048, 2048, 0, 0, 2048, 2048)
    beyond = View(Span(-16, 128, limit=256), Span(144, 128, limit=256))
    assert time_ids(padded, beyond, known, 8) == (2048, 2048, 0, 1152 + 128, 2048, 2048)
    assert time_ids(SizeConditioning(), beyond, known, 8) == (2048, 2048, 0, 1152, 2048, 2048)


@pytest.mark.parametrize("method", ["cutdiffusion", "asg", "asg-limit"])
def test_structure_ends_after_half_of_any_number_of_steps(method):
    """CutDiffusion's code compares a step with steps times share, so with 25 steps its structure would never end."""
    composition = load_method(method)
    assert composition.boundaries(50) == (25, 50)
    assert composition.boundaries(25) == (13, 25)
    for num_steps in range(2, 60):
        structure, everything = composition.boundaries(num_steps)
        assert 0 < structure < everything == num_steps and abs(structure - num_steps / 2) <= 0.5


def test_switches_are_off_and_checked():
    loader = Loader(build_registry())
    stage = load_method("demofusion").stages[1]
    assert stage.scale_batch is None and stage.sizes.crop == "view"
    assert not stage.unscaled_start and stage.patching.border == "stay"
    with pytest.raises(ConfigError, match="about windows that jitter"):
        load_method("multidiffusion", ["stages.0.patching.border=leave"])
    with pytest.raises(ConfigError, match="scale_batch"):
        load_method("demofusion", ["stages.1.scale_batch=0"])
    with pytest.raises(ConfigError, match="crop"):
        loader.structure({"crop": "pad"}, SizeConditioning, "test")
