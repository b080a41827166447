"""Geometry: every cell of every canvas lies in a view, and no result depends on the order of views."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vitrail.core.assembly import gather_views, permute_views
from vitrail.core.prediction import Prediction
from vitrail.core.streams import Streams
from vitrail.core.views import Canvas, Patches, Span, View, check_cover, window_starts
from vitrail.discovery import build_registry
from vitrail.errors import CoverageError, ShapeError
from vitrail.methods import load_method
from vitrail.plugins.patching import Lattice, Windows
from vitrail.testing import make_step

METHODS = build_registry().names("methods")
TAILS = ("spread", "shift")
LENGTHS = st.integers(1, 96)
SEEDS = st.integers(0, 2**32)


def counts(views, height, width):
    """How many views see each cell."""
    total = torch.zeros(height, width, dtype=torch.int)
    for view in views:
        total[view.rows, view.cols] += 1
    return total


@pytest.mark.parametrize("tail", TAILS)
@given(window=st.integers(1, 200), data=st.data())
def test_windows_cover_an_axis_of_any_length(tail, window, data):
    stride = data.draw(st.integers(1, window))
    for length in range(1, 601):
        starts = window_starts(length, window, stride, tail)
        gaps = [b - a for a, b in pairwise(starts)]
        assert starts[0] == 0
        assert starts[-1] + min(window, length) == length
        assert all(0 < gap <= stride for gap in gaps)
        assert len(gaps) == max(0, math.ceil((length - window) / stride))  # no more than are needed
        if tail == "spread" and gaps:
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("length", "count"), [(128, 1), (192, 2), (256, 3), (300, 4), (320, 4), (384, 5), (512, 7), (1024, 15)]
)
def test_the_published_window_counts(length, count):
    assert len(window_starts(length, 128, 64, "shift")) == count


def test_a_shifted_tail_moves_the_last_window_only():
    assert window_starts(300, 128, 64, "shift") == (0, 64, 128, 172)
    assert window_starts(320, 128, 64, "shift") == (0, 64, 128, 192)


@pytest.mark.parametrize("jitter", [False, True])
@given(
    height=LENGTHS,
    width=LENGTHS,
    native=st.integers(1, 24),
    overlap=st.floats(0, 0.95),
    tail=st.sampled_from(TAILS),
    index=st.integers(0, 50),
    seed=SEEDS,
)
@example(height=57, width=9, native=10, overlap=0.75, tail="shift", index=0, seed=2)  # the last gap is a single cell
@example(height=40, width=40, native=10, overlap=0.95, tail="spread", index=0, seed=0)  # gaps below the jitter
def test_windows_cover_every_canvas(jitter, height, width, native, overlap, tail, index, seed):
    strategy, canvas = Windows(overlap=overlap, jitter=jitter, tail=tail), Canvas(height, width, native)
    views = strategy.patch(make_step(index), canvas, 4, Streams(seed)).views
    check_cover(views, height, width)
    assert {view.shape for view in views} == {(min(native, height), min(native, width))}
    assert all(v.rows.start >= 0 and v.rows.stop <= height for v in views)
    assert all(v.cols.start >= 0 and v.cols.stop <= width for v in views)
    assert len(views) == len(Windows(overlap=overlap, tail=tail).patch(make_step(0), canvas, 4, Streams(0)).views)


def test_jitter_differs_from_step_to_step_and_hangs_on_the_seed():
    def views(seed, index):
        return Windows(jitter=True).patch(make_step(index), Canvas(64, 64, 16), 4, Streams(seed)).views

    assert views(0, 0) == views(0, 0)
    assert views(0, 0) != views(0, 1)
    assert views(0, 0) != views(1, 0)


@given(height=LENGTHS, width=LENGTHS, native=st.integers(4, 24), interaction=st.sampled_from(["pixel", "element"]))
def test_lattices_part_every_canvas(height, width, native, interaction):
    strategy = Lattice(interaction=interaction)
    canvas = Canvas(height, width, native)
    canvas = canvas.padded(*strategy.granularity(canvas))
    patches = strategy.patch(make_step(0), canvas, 4, Streams(0))
    assert (counts(patches.views, canvas.height, canvas.width) == 1).all()
    assert len(patches.views) == canvas.scale("height") * canvas.scale("width")
    assert patches.views[patches.key] == min(patches.views)
    if patches.permutation is not None:
        everyone = torch.arange(len(patches.views)).view(-1, 1, 1, 1, 1).expand_as(patches.permutation)
        assert torch.equal(patches.permutation.sort(dim=0).values, everyone)


@given(height=LENGTHS, width=LENGTHS, native=st.integers(1, 24), down=st.integers(1, 7), right=st.integers(1, 7))
def test_padding_is_least_and_does_not_count_as_picture(height, width, native, down, right):
    canvas = Canvas(height, width, native)
    padded = canvas.padded(down, right)
    assert (padded.height % down, padded.width % right) == (0, 0)
    assert (padded.height - padded.pad_height, padded.width - padded.pad_width) == (height, width)
    assert padded.pad_height < down
    assert padded.pad_width < right
    assert [padded.scale(axis) for axis in ("height", "width")] == [canvas.scale(axis) for axis in ("height", "width")]
    assert padded.padded(down, right) == padded


@pytest.mark.parametrize("method", METHODS)
@given(height=st.integers(64, 600), width=st.integers(64, 600), native=st.sampled_from([8, 16]), seed=SEEDS)
def test_a_constant_prediction_stays_itself_at_every_picture_size(method, height, width, native, seed):
    composition = load_method(method)
    canvas = composition.pad(Canvas(-(-height // 8), -(-width // 8), native), 10)
    latents = torch.zeros(1, 2, canvas.height, canvas.width)
    said = torch.tensor([0.7, -1.3]).view(1, 2, 1, 1)
    for number, stage in enumerate(composition.stages):
        step = make_step(5, stage=number, prediction_type="sample")
        for family in (stage, *stage.also):
            patches = family.patching.patch(step, canvas, 2, Streams(seed)).canonical()
            cut = gather_views(latents, patches.views)
            fused = family.fusion.fuse(step, patches.views, Prediction(cut, said.expand_as(cut), step), latents)
            torch.testing.assert_close(fused, said.expand_as(latents), rtol=1e-5, atol=1e-5)


@given(data=st.data(), down=st.integers(1, 3), right=st.integers(1, 3), seed=SEEDS)
def test_the_canonical_order_shows_every_view_the_same_pixels(data, down, right, seed):
    views = [View(Span(y, 4, down), Span(x, 5, right)) for y in range(down) for x in range(right)]
    views = data.draw(st.permutations(views))
    key = data.draw(st.integers(0, len(views) - 1))
    canvas = Streams(seed).normal((1, 2, 4 * down, 5 * right), "canvas")
    order = Streams(seed).uniform((len(views), 1, 2, 4, 5), "order").argsort(dim=0)
    patches = Patches(views, order, key, clean_key=True)
    sorted_patches = patches.canonical()

    def inputs(patches):
        seen = gather_views(canvas, patches.views)
        return dict(zip(patches.views, permute_views(seen, patches)[:-1], strict=True))

    assert list(sorted_patches.views) == sorted(views)
    assert sorted_patches.views[sorted_patches.key] == views[key]
    assert sorted_patches.clean_key
    before, after = inputs(patches), inputs(sorted_patches)
    assert all(torch.equal(before[view], after[view]) for view in views)
    assert sorted_patches.canonical() is sorted_patches


@given(start=st.integers(0, 9), count=st.integers(1, 9), step=st.integers(1, 5))
def test_a_span_is_the_slice_of_its_cells(start, count, step):
    assert list(range(100)[Span(start, count, step).slice]) == [start + i * step for i in range(count)]


@given(height=LENGTHS, width=LENGTHS, data=st.data())
def test_the_first_uncovered_cell_is_named(height, width, data):
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    assume(height * width > 1)
    views = [
        View(Span(0, y), Span(0, width)),
        View(Span(y, 1), Span(0, x)),
        View(Span(y, 1), Span(x + 1, width - x - 1)),
        View(Span(y + 1, height - y - 1), Span(0, width)),
    ]
    views = [view for view in views if min(view.shape) > 0]
    with pytest.raises(CoverageError, match=rf"cell \({y}, {x}\) of {height}x{width}"):
        check_cover(views, height, width)


def test_views_of_several_shapes_and_keys_out_of_range_are_refused():
    small, large = View(Span(0, 4), Span(0, 4)), View(Span(0, 8), Span(0, 4))
    with pytest.raises(ShapeError, match="one shape"):
        Patches([small, large])
    with pytest.raises(ShapeError, match="key view 1 of 1"):
        Patches([small], key=1)
