"""Windows that move together: every cell is seen at every step, and seams do not stay where they are."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.geometry.views import Canvas
from vitrail.core.schedule.streams import Streams
from vitrail.plugins.patching.windows import Windows
from vitrail.testing import WRAPS, make_step

STEPS = 12
LENGTHS, NATIVES = st.integers(1, 90), st.integers(1, 24)


def moved(windows, canvas, step, seed=0):
    return windows.patch(make_step(index=step, num_steps=STEPS), canvas, 4, Streams(seed)).views


def counts(views, canvas):
    total = torch.zeros(canvas.height, canvas.width, dtype=torch.int)
    for view in views:
        view.add_to(total, torch.ones(view.shape, dtype=torch.int))
    return total


@given(height=LENGTHS, width=LENGTHS, native=NATIVES, wrap=st.sampled_from(WRAPS), overlap=st.sampled_from([0.0, 0.5]))
def test_every_cell_is_seen_at_every_step_by_the_same_number_of_windows(height, width, native, wrap, overlap):
    canvas, windows = Canvas(height, width, native, wrap=wrap), Windows(overlap=overlap, grid="moving")
    for step in range(0, STEPS, 4):
        views = moved(windows, canvas, step)
        outline = windows.outline(make_step(index=step, num_steps=STEPS), canvas)
        assert len(views) == outline.count and {view.shape for view in views} == {outline.shape}
        assert int(counts(views, canvas).min()) >= 1


@given(rows=st.integers(1, 4), cols=st.integers(1, 4), native=NATIVES)
def test_around_the_edges_windows_without_overlap_see_each_cell_once(rows, cols, native):
    canvas = Canvas(rows * native, cols * native, native, wrap="xy")
    windows = Windows(overlap=0.0, grid="moving")
    assert all(int(counts(moved(windows, canvas, step), canvas).max()) == 1 for step in range(STEPS))


@given(native=st.integers(8, 24), share=st.floats(1.5, 5), seed=st.integers(0, 2**32))
def test_seams_move_and_each_cell_lies_within_a_window_at_some_step(native, share, seed):
    """Two cells are together in a window at some step unless they are farther apart than it is long."""
    canvas, windows = Canvas(native, int(share * native), native), Windows(overlap=0.0, grid="moving")
    joined = torch.zeros(canvas.width - 1, dtype=torch.bool)
    for step in range(4 * STEPS):
        for view in moved(windows, canvas, step, seed):
            joined[view.horizontal.start : view.horizontal.start + native - 1] = True
    assert bool(joined.all())


def test_once_a_size_moves_once():
    canvas, windows = Canvas(48, 48, 16), Windows(overlap=0.0, grid="moving", redraw="size")
    assert len({moved(windows, canvas, step) for step in range(STEPS)}) == 1
    assert len({moved(Windows(overlap=0.0, grid="moving"), canvas, step) for step in range(STEPS)}) > STEPS // 2


def test_as_many_windows_as_cover_the_canvas_and_the_way_that_they_move():
    canvas = Canvas(48, 48, 16)
    still, moving = (len(moved(Windows(overlap=0.0, grid=grid), canvas, 0)) for grid in ("fixed", "moving"))
    half = len(moved(Windows(overlap=0.5), canvas, 0))
    assert (still, moving, half) == (9, 16, 25) and math.isqrt(moving) == math.isqrt(still) + 1


@given(native=st.integers(2, 24), count=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_no_two_windows_stop_at_one_place(native, count, seed):
    canvas, windows = Canvas(native, count * native, native), Windows(overlap=0.0, grid="moving")
    for step in range(STEPS):
        views = moved(windows, canvas, step, seed)
        assert len(set(views)) == len(views)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"jitter": True}, "jitter moves each window"), ({"tail": "shift"}, "'tail' is about windows")],
)
def test_windows_that_move_together_have_neither_jitter_nor_tail(options, told):
    with pytest.raises(ValueError, match=told):
        Windows(grid="moving", **options)
