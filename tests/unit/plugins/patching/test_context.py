"""Windows with context and windows over a background: what is read, and what counts."""

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.geometry.views import Canvas, Patches, Span, View
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CoverageError, ShapeError
from vitrail.plugins.fusion.averages import Average
from vitrail.plugins.fusion.paste import Paste
from vitrail.plugins.patching.windows import Windows
from vitrail.testing import WRAPS, make_step

LENGTHS, NATIVES = st.integers(1, 60), st.integers(1, 16)
CONTEXT = st.sampled_from([0.25, 0.5, 1.0, 2.0])
STEP = make_step(3)


def views_of(windows, canvas):
    return windows.patch(STEP, canvas, 4, Streams(0)).canonical().views


def counts(views, canvas):
    total = torch.zeros(canvas.height, canvas.width, dtype=torch.int)
    for view in views:
        view.add_to(total, torch.ones(view.shape, dtype=torch.int))
    return total


@given(start=st.integers(0, 20), count=st.integers(1, 12), step=st.integers(1, 3), data=st.data())
def test_what_is_written_of_a_span_is_what_is_read_without_its_context(start, count, step, data):
    before = data.draw(st.integers(0, count - 1))
    after = data.draw(st.integers(0, count - 1 - before))
    length = data.draw(st.sampled_from([None, max(start + 1, (count - 1) * step + 1)]))
    span = Span(start, count, step, length, context=(before, after))
    cells = range(start, start + count * step, step)
    wanted = {(c if length is None else c % length): i for i, c in enumerate(cells) if before <= i < count - after}
    axis = list(range(200))
    got = {c: i for axis_part, own in span.written for c, i in zip(axis[axis_part], range(200)[own], strict=True)}
    assert got == wanted


@pytest.mark.parametrize("context", [(2, 2), (4, 0), (-1, 0)])
def test_a_span_is_not_all_context(context):
    with pytest.raises(ShapeError, match="no cell besides its context"):
        Span(0, 4, context=context)


@given(height=LENGTHS, width=LENGTHS, native=NATIVES, wrap=st.sampled_from(WRAPS), context=CONTEXT)
def test_windows_with_context_count_for_every_cell_as_those_without(height, width, native, wrap, context):
    canvas, plain = Canvas(height, width, native, wrap=wrap), Windows(overlap=0.0, tail="shift")
    windows = evolve(plain, context=context)
    views = views_of(windows, canvas)
    more = round(native * context)
    wide = [length if native + more >= length else native + more for length in (height, width)]
    assert {view.shape for view in views} == {tuple(wide)}
    assert windows.outline(STEP, canvas).count == len(views) <= windows.outline(STEP, canvas).count
    both = all(native + more < length for length in (height, width))
    if both:
        assert torch.equal(counts(views, canvas), counts(views_of(plain, canvas), canvas))
    assert int(counts(views, canvas).min()) >= 1


def test_half_of_the_context_lies_on_either_side_and_at_a_border_on_the_other():
    views = views_of(Windows(overlap=0.0, context=1.0), Canvas(8, 40, 8))
    seen = [(view.horizontal.start, view.horizontal.context) for view in views]
    assert seen == [(0, (0, 8)), (4, (4, 4)), (12, (4, 4)), (20, (4, 4)), (24, (8, 0))]
    assert all(view.vertical == Span(0, 8) for view in views), "a whole axis has no context"


@given(height=LENGTHS, width=LENGTHS, native=NATIVES, overlap=st.sampled_from([0.0, 0.5]), context=CONTEXT)
def test_paste_has_the_first_view_of_every_cell(height, width, native, overlap, context):
    canvas = Canvas(height, width, native)
    views = views_of(Windows(overlap=overlap, tail="shift", context=context), canvas)
    latents = torch.zeros(1, 4, height, width)
    numbered = torch.arange(len(views), dtype=torch.float32)[:, None, None, None, None]
    output = numbered.expand(-1, 1, 4, *views[0].shape)
    fused = Paste().fuse(STEP, views, Prediction(output, output, STEP), latents)
    first = torch.full((height, width), len(views))
    for number, view in enumerate(views):
        view.write(own := torch.full((height, width), len(views)), torch.full(view.shape, number))
        first = torch.minimum(first, own)
    assert torch.equal(fused[0, 0], first.float())
    if int(counts(views, canvas).max()) == 1:
        assert torch.equal(fused, Average().fuse(STEP, views, Prediction(output, output, STEP), latents))


def test_paste_refuses_views_that_leave_cells_out():
    views = (View(Span(0, 4, 2), Span(0, 4, 2)),)
    zeros = torch.zeros(1, 1, 4, 4, 4)
    with pytest.raises(CoverageError, match=r"latent cell \(0, 1\) lies in no view"):
        Paste().fuse(STEP, views, Prediction(zeros, zeros, STEP), torch.zeros(1, 4, 8, 8))


@given(height=LENGTHS, width=LENGTHS, native=NATIVES, wrap=st.sampled_from(WRAPS))
def test_windows_over_a_background_have_the_training_size_and_leave_both_ends(height, width, native, wrap):
    canvas, windows = Canvas(height, width, native, wrap=wrap), Windows(pad="background")
    views = views_of(windows, canvas)
    short = [not canvas.wraps(axis) and length < native for axis, length in zip("yx", (height, width), strict=True)]
    sides = [
        native if is_short else min(native, length) for is_short, length in zip(short, (height, width), strict=True)
    ]
    assert {view.shape for view in views} == {tuple(sides)} and windows.needs_background(canvas) == any(short)
    assert any(view.leaves for view in views) == any(short)
    assert windows.outline(STEP, canvas).shape == tuple(sides)
    picture = Streams(1).normal((1, 2, height, width), "picture")
    back = torch.zeros_like(picture)
    for view in views:
        view.write(back, view.read(picture))
    assert torch.equal(back, picture)


def test_context_orders_views_that_see_the_same_cells():
    spans = [Span(0, 8, context=(0, 6)), Span(0, 8, context=(2, 4)), Span(0, 8, context=(4, 0))]
    views = [View(row, col) for row in spans for col in spans]
    for order in (views, views[::-1]):
        assert Patches(order).canonical().views == tuple(views)


@pytest.mark.parametrize("more", [{"context": 1.0}, {"pad": "background"}])
def test_windows_that_leave_the_canvas_look_at_zeros_alone(more):
    with pytest.raises(ValueError, match="look at zeros"):
        Windows(jitter=True, border="leave", **more)
