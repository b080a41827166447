"""Small copies of a canvas, the direction that is spread from them, and the pull towards the last one."""

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.engine.guidance_context import GuidanceContext
from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.guidance.copies import Copies
from vitrail.plugins.guidance.direction import Direction, copy_shape
from vitrail.testing import make_prediction, make_step

SIDES = st.integers(1, 40)
ALL = {"resampling": 3, "redraw": 1.0}  # four copies, which have every cell of every block once


def scene_of(step, canvas, asked=None, scale=3.0):
    """A network that works cell by cell: without text half of the latents, with it their sine."""

    def ask(step, model_input, shown, sizes=None):
        if asked is not None:
            asked.append((model_input, shown))
        return {"uncond": model_input / 2, "cond": model_input.sin()}

    return GuidanceContext(
        guidance_scale=scale,
        canvas=canvas,
        streams=Streams(1),
        ask_branches=ask,
        scale=lambda latents: latents,
        background=lambda shape: torch.full((1, 4, *shape), 7.0),
    )


def guided(options, step, canvas, scene, batch=1):
    made = make_prediction((batch, 4, canvas.height, canvas.width), step)
    return made, *Direction(**options).guide(step, evolve(made, model_output=made.latents / 2), scene, None)


@given(height=SIDES, width=SIDES, h=SIDES, w=SIDES, count=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_copy_has_a_cell_of_every_block_and_further_ones_have_others(height, width, h, w, count, seed):
    copies = Copies.drawn((height, width), (h, w), count, 1.0, Streams(seed), 0)
    assert copies.choices.shape == (count, h, w) and not copies.choices[0].any()
    assert set(copies.choices.unique().tolist()) <= {0, 1, 2, 3}
    ordered = copies.choices[:4].sort(0).values
    assert bool((ordered[1:] != ordered[:-1]).all()), "no cell of a block twice before all four were taken"
    canvas = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    small = copies.read(canvas)
    assert small.shape == (count, 1, 1, h, w)
    back, large = copies.spread(small), copies.enlarged(small[-1])
    assert back.shape == large.shape == canvas.shape and set(back.unique().tolist()) <= set(canvas.unique().tolist())


@given(h=SIDES, w=SIDES, seed=st.integers(0, 99))
def test_four_copies_of_twice_their_sides_are_the_canvas(h, w, seed):
    canvas = Streams(seed).normal((2, 3, 2 * h, 2 * w), "x")
    copies = Copies.drawn((2 * h, 2 * w), (h, w), 4, 1.0, Streams(seed), 0)
    assert torch.equal(copies.spread(copies.read(canvas)), canvas)


def test_blocks_that_are_not_redrawn_keep_their_cell_and_the_share_is_kept():
    copies = Copies.drawn((128, 128), (64, 64), 2, 0.3, Streams(0), 0)
    assert float((copies.choices[0] != copies.choices[1]).float().mean()) == pytest.approx(0.3, abs=0.03)
    again = Copies.drawn((128, 128), (64, 64), 3, 0.0, Streams(0), 0)
    assert torch.equal(again.choices[0].expand(3, -1, -1), again.choices)


@given(height=SIDES, width=SIDES, native=st.integers(1, 16))
def test_a_copy_has_the_proportions_of_the_canvas_and_the_training_size(height, width, native):
    h, w = copy_shape(Canvas(height, width, native))
    if max(height, width) <= native:
        assert (h, w) == (height, width)
    else:
        assert max(h, w) == native and min(h, w) == max(1, min(height, width) * native // max(height, width))


@pytest.mark.parametrize("wrap", ["none", "x", "xy"])
@pytest.mark.parametrize("batch", [1, 2])
def test_with_all_four_copies_a_network_without_neighbours_is_guided_as_ever(wrap, batch):
    step, canvas = make_step(3), Canvas(16, 16, 8, wrap=wrap)
    made, prediction, _ = guided(ALL, step, canvas, scene_of(step, canvas), batch)
    x = made.latents
    torch.testing.assert_close(prediction.model_output, x / 2 + 3.0 * (x.sin() - x / 2))


def test_the_pull_is_the_gradient_of_the_distance_to_the_last_copy():
    step, canvas = make_step(2), Canvas(16, 16, 8)
    strategy, scene = Direction(pull=500.0, until=0.7), scene_of(step, canvas)
    _, prediction, state = guided({"pull": 500.0, "until": 0.7}, step, canvas, scene)
    clean = prediction.clean.clone().requires_grad_()
    low = (state + prediction.clean).detach()
    weight = 500.0 * (0.5 * (1 + torch.cos(torch.tensor(torch.pi * 2 / 7)))) ** 3
    (slope,) = torch.autograd.grad(-weight * ((low - clean) ** 2).mean(), clean)
    latents = Streams(4).normal((1, 4, 16, 16), "after")
    moved, state = strategy.guide(step, latents, scene, state)
    torch.testing.assert_close(moved - latents, slope, rtol=1e-4, atol=1e-6)
    assert state is None
    exploding = evolve(step, next_alpha=1.0, next_sigma=3.0)  # where latents are larger, so is the move
    further, _ = strategy.guide(exploding, latents, scene, low - prediction.clean)
    torch.testing.assert_close(further - latents, 10**0.5 * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_the_last_copy_of_a_canvas_of_one_colour_pulls_nowhere(kind):
    step, canvas = make_step(2, prediction_type=kind), Canvas(16, 24, 8)
    flat = torch.full((1, 4, 16, 24), 0.3)
    scene = scene_of(step, canvas)
    _, state = Direction(pad="none").guide(step, Prediction(flat, flat / 2, step), scene, None)
    torch.testing.assert_close(state, torch.zeros_like(flat))


def test_the_pull_rests_late_without_weight_and_until_a_timestep_is_done_for_the_last_time():
    step, canvas = make_step(2), Canvas(16, 16, 8)
    for options, at in (
        ({"pull": 0.0}, step),
        ({"until": 0.0}, step),
        ({}, make_step(8)),
        ({}, make_step(7)),  # below a hundredth of the first
        ({}, evolve(step, num_repeats=1)),
    ):
        assert guided(options, at, canvas, scene_of(at, canvas))[2] is None
    last = evolve(step, repeat=1, num_repeats=1)
    assert guided({}, last, canvas, scene_of(last, canvas))[2] is not None


def test_a_timestep_done_again_and_a_picture_of_the_training_size_have_one_copy():
    step, canvas, own = make_step(2), Canvas(16, 16, 8), Canvas(8, 8, 8)
    for at, on, count in ((step, canvas, 8), (evolve(step, repeat=1), canvas, 1), (step, own, 1)):
        asked = []
        guided({}, at, on, scene_of(at, on, asked))
        assert asked[0][0].shape == (count, 1, 4, 8, 8)
        assert Direction().cost(at, on, 2).rows == {64: 2 * count}


def test_a_narrow_copy_is_filled_up_with_the_background_where_ends_do_not_meet():
    step = make_step(2)
    for wrap, shape in (("none", (8, 8)), ("x", (8, 4))):
        canvas, asked = Canvas(16, 8, 8, wrap=wrap), []
        made, prediction, _ = guided(ALL, step, canvas, scene_of(step, canvas, asked))
        inputs, shown = asked[0]
        assert inputs.shape[-2:] == shape == shown[0].view.shape
        assert Direction().needs_background(canvas) == (shape == (8, 8))
        x = made.latents
        torch.testing.assert_close(prediction.model_output, x / 2 + 3.0 * (x.sin() - x / 2))
        if shape == (8, 8):
            assert bool((inputs[..., :2] == 7).all() and (inputs[..., 6:] == 7).all())
            assert shown[0].cells == ((0, 2, 4, 6, 8, 10, 12, 14), (0, 0, 0, 2, 4, 6, 6, 6))
    assert not Direction(pad="none").needs_background(Canvas(16, 8, 8))


@pytest.mark.parametrize("wrap", ["none", "xy"])
def test_regions_are_told_the_cells_that_a_copy_shows(wrap):
    """Where edges meet the canvas is rolled before it is copied, and cells are named as they were before."""
    canvas, step, asked = Canvas(16, 24, 8, wrap=wrap), make_step(), []
    made = make_prediction((1, 4, 16, 24), step)
    number = torch.arange(16 * 24, dtype=torch.float32).view(1, 1, 16, 24).expand(1, 4, 16, 24)
    made = evolve(made, latents=number.clone(), model_output=torch.zeros_like(number))
    Direction(resampling=0, pull=0.0, pad="none").guide(step, made, scene_of(step, canvas, asked), None)
    ((model_input, (shown,)),) = asked
    rows, cols = (torch.tensor(cells) for cells in shown.cells)
    assert torch.equal(model_input[0, 0, 0], number[0, 0][rows][:, cols])
