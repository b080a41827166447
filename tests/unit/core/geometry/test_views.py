"""Geometry: every cell of every canvas lies in a view, and no result depends on the order of views."""

import math
from itertools import pairwise

import pytest
import torch
from attrs import evolve
from hypothesis import assume, example, given
from hypothesis import strategies as st

from methods import EACH
from vitrail.core.engine.micro_batches import gather_views, permute_views
from vitrail.core.engine.network import rolled, unrolled
from vitrail.core.geometry.views import Canvas, Patches, Span, View
from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
from vitrail.core.schedule.prediction import Prediction
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError, CoverageError, ShapeError
from vitrail.plugins.fusion.averages import Average, Gaussian
from vitrail.plugins.patching.lattice import Lattice
from vitrail.plugins.patching.whole import Whole
from vitrail.plugins.patching.windows import Windows, window_starts
from vitrail.sampling.methods import load_method
from vitrail.testing import WRAPS, check_cover, make_step

TAILS = ("spread", "shift")
LENGTHS = st.integers(1, 96)
SEEDS = st.integers(0, 2**32)


def counts(views, height, width):
    """How many views see each cell."""
    total = torch.zeros(height, width, dtype=torch.int)
    for view in views:
        view.add_to(total, torch.ones(view.shape, dtype=torch.int))
    return total


@st.composite
def spans(draw, length):
    """Any span on an axis of some cells whose ends meet."""
    step = draw(st.integers(1, length))
    return Span(draw(st.integers(0, length - 1)), draw(st.integers(1, (length - 1) // step + 1)), step, length)


def cells(span, length):
    """A span, cell by cell."""
    return [(span.start + i * span.step) % length for i in range(span.count)]


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


@pytest.mark.parametrize("method", EACH)
@given(height=st.integers(64, 600), width=st.integers(64, 600), native=st.sampled_from([8, 16]), seed=SEEDS)
def test_a_constant_prediction_stays_itself_at_every_picture_size(method, height, width, native, seed):
    composition = load_method(method)
    said = torch.tensor([0.7, -1.3]).view(1, 2, 1, 1)
    groups = [(group, number) for group, numbers in enumerate(composition.groups()) for number in numbers]
    for group, number in groups:
        stage, canvas = composition.stages[number], Canvas(-(-height // 8), -(-width // 8), native)
        canvas = composition.pad(canvas, 10, group)
        latents = torch.zeros(1, 2, canvas.height, canvas.width)
        step = make_step(5, stage=number, prediction_type="sample")
        for family in (stage, *stage.extra_views):
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


@given(height=st.integers(1, 12), width=st.integers(1, 12), data=st.data())
def test_a_view_across_the_ends_is_read_written_and_added_cell_by_cell(height, width, data):
    view = View(data.draw(spans(height)), data.draw(spans(width)))
    canvas = Streams(0).normal((2, height, width), "canvas")
    rows, cols = (torch.tensor(cells(span, n)) for span, n in ((view.vertical, height), (view.horizontal, width)))
    expected = canvas.index_select(1, rows).index_select(2, cols)
    assert torch.equal(view.read(canvas), expected)
    written = torch.zeros_like(canvas)
    view.write(written, expected)
    seen = torch.zeros(height, width).index_put((rows[:, None], cols[None]), torch.ones(()))
    assert torch.equal(written, canvas * seen)
    view.add_to(written, expected)
    assert torch.equal(written, canvas * (2 * seen))
    assert int(counts([view], height, width).sum()) == rows.numel() * cols.numel()


@given(start=st.integers(0, 9), count=st.integers(1, 9), step=st.integers(1, 5))
def test_a_view_that_goes_across_no_end_is_a_slice_of_the_canvas(start, count, step):
    canvas, span = torch.zeros(60, 60), Span(start, count, step, 60)
    view = View(span, Span(start, count, step))
    assert view.read(canvas).data_ptr() == canvas[view.rows, view.cols].data_ptr()
    assert len(view.pieces) == 1


def test_a_span_across_the_ends_is_no_slice():
    view = View(Span(6, 4, 1, 8), Span(0, 4))
    with pytest.raises(ShapeError, match=r"Span\(start=6.* goes across the ends"):
        _ = view.rows
    with pytest.raises(ShapeError, match="sees a cell twice"):
        Span(0, 9, 1, 8)
    with pytest.raises(ShapeError, match="does not begin on its axis"):
        Span(8, 1, 1, 8)
    with pytest.raises(ShapeError, match="cannot be rolled"):
        Span(0, 7, 1, 8).rolled(1)


@pytest.mark.parametrize("tail", TAILS)
@given(window=st.integers(1, 200), length=st.integers(1, 600), data=st.data())
def test_windows_lie_evenly_on_a_ring(tail, window, length, data):
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride, tail, wraps=True)
    gaps = [b - a for a, b in pairwise((*starts, length))]
    assert starts[0] == 0
    assert len(starts) == (1 if length <= window else math.ceil(length / stride))  # no more than are needed
    if len(starts) > 1:
        assert all(0 < gap <= stride for gap in gaps)
        assert max(gaps) - min(gaps) <= 1 if tail == "spread" else set(gaps[:-1]) <= {stride}
        if length % stride == 0:
            assert set(gaps) == {stride}


@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
@given(
    height=LENGTHS,
    width=LENGTHS,
    native=st.integers(1, 24),
    overlap=st.floats(0, 0.95),
    tail=st.sampled_from(TAILS),
    index=st.integers(0, 50),
    seed=SEEDS,
)
def test_jittered_windows_cover_a_canvas_whose_ends_meet(wrap, height, width, native, overlap, tail, index, seed):
    strategy, canvas = Windows(overlap=overlap, jitter=True, tail=tail), Canvas(height, width, native, wrap=wrap)
    patches = strategy.patch(make_step(index), canvas, 4, Streams(seed))
    check_cover(patches.views, height, width)
    assert {view.shape for view in patches.views} == {(min(native, height), min(native, width))}
    for span, length, axis in ((v.vertical, height, "y") for v in patches.views):
        assert span.length == (length if axis in wrap else None)
        assert axis in wrap or 0 <= span.start <= length - span.count


def test_on_a_ring_every_window_moves():
    canvas = Canvas(16, 64, 16, wrap="x")
    still = Windows().patch(make_step(0), canvas, 4, Streams(0)).views
    moved = [Windows(jitter=True).patch(make_step(i), canvas, 4, Streams(0)).views for i in range(20)]
    assert len(still) == 8
    assert all(any(views[i] != still[i] for views in moved) for i in range(8))
    assert {view.vertical for views in moved for view in views} == {Span(0, 16)}


@pytest.mark.parametrize(
    ("strategy", "cells_of_a_turn"), [(Whole(), (48, 32)), (Lattice(interaction="none"), (0, 0)), (Windows(), (0, 0))]
)
def test_a_place_is_an_edge_once_before_all_others_were(strategy, cells_of_a_turn):
    canvas = Canvas(48, 32, 16, wrap="xy")
    rolls = []
    for index in range(48):
        patches = strategy.patch(make_step(index, num_steps=48), canvas, 4, Streams(3))
        assert patches.views == strategy.patch(make_step(0), canvas, 4, Streams(3)).views  # the views stay
        rolls.append(patches.views[-1].roll)
    for axis, count in enumerate(cells_of_a_turn):
        assert len({roll[axis] for roll in rolls[:count]}) == count
    assert any(cells_of_a_turn) or set(rolls) == {(0, 0)}
    other = [strategy.patch(make_step(i), canvas, 4, Streams(4)).views[0].roll for i in range(16)]
    assert not any(cells_of_a_turn) or other != rolls[:16]


@pytest.mark.parametrize("wrap", ["x", "y"])
def test_only_an_axis_whose_ends_meet_is_turned(wrap):
    views = [Whole().patch(make_step(i), Canvas(24, 24, 16, wrap=wrap), 4, Streams(0)).views[0] for i in range(9)]
    still, moved = (0, 1) if wrap == "x" else (1, 0)
    assert {view.roll[still] for view in views} == {0}
    assert len({view.roll[moved] for view in views}) == 9


@given(
    height=st.integers(1, 6), width=st.integers(1, 6), down=st.integers(1, 3), right=st.integers(1, 3), data=st.data()
)
def test_the_network_sees_what_a_turned_view_reads_and_its_answer_is_turned_back(height, width, down, right, data):
    canvas = Streams(0).normal((1, 3, height * down, width * right), "canvas")
    roll = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    plain = [
        View(Span(y, height, down, height * down), Span(x, width, right, width * right), roll)
        for y in range(down)
        for x in range(right)
    ]
    rows = MicroBatch(gather_views(canvas, plain).flatten(0, 1), ["cond"] * len(plain), plain)

    def forward(shown):
        assert torch.equal(shown.model_input, gather_views(canvas, shown.views).flatten(0, 1))
        return ModelOutput(shown.model_input * 2, shown.model_input[:, :1] + 1)

    said = unrolled(forward(rolled(rows)), rows)
    assert torch.equal(said.model_output, rows.model_input * 2)
    assert torch.equal(said.attention, rows.model_input[:, :1] + 1)


def test_views_of_one_family_are_turned_alike():
    views = [View(Span(y, 4, 2, 8), Span(0, 4), (y, 0)) for y in range(2)]
    with pytest.raises(ShapeError, match="rolled alike"):
        Patches(views)


@pytest.mark.parametrize("wrap", WRAPS)
@given(height=st.integers(64, 999), width=st.integers(64, 999), factor=st.integers(1, 5), native=st.integers(4, 32))
def test_an_axis_whose_ends_meet_is_never_padded_and_the_sizes_told_fit(wrap, height, width, factor, native):
    def fit(height, width):
        canvas = Canvas.of_picture(height, width, 8, native, wrap)
        return canvas.padded(*(factor * canvas.scale(axis) for axis in ("height", "width")))

    try:
        canvas = fit(height, width)
    except ConfigError as error:
        told = {}
        for line in str(error).splitlines():
            assert line.startswith(f"wrap {wrap!r}: a ")
            told[line.split()[3]] = int(line.rpartition("try ")[2].split()[0])
        assert told
        assume(8 * factor * (max(height, width) / 8 / native + 1) < native * 8)  # some size of this scale fits
        assert fit(**({"height": height, "width": width} | told)).wrap == wrap
    else:
        for axis, pixels, cells_there in (("y", height, canvas.height), ("x", width, canvas.width)):
            assert axis not in wrap.replace("none", "") or cells_there * 8 == pixels
        assert canvas.cell == 8


def test_a_size_that_cannot_wrap_is_refused_with_the_sizes_that_can():
    composition = load_method("asg-plus")
    with pytest.raises(ConfigError) as told:
        composition.pad(Canvas.of_picture(300, 520, 8, 32, "xy"), 10)
    assert str(told.value).splitlines() == [
        "wrap 'xy': a height of 300 pixels must be a multiple of 8 (8 to a latent cell); try 296 or 304",
        "wrap 'xy': a width of 520 pixels must be a multiple of 16 (8 to a latent cell, and 2 strided views side by "
        "side); try 512 or 528",
    ]
    assert composition.pad(Canvas.of_picture(300, 520, 8, 32), 10).width == 66
    assert composition.pad(Canvas.of_picture(300, 528, 8, 32, "x"), 10).height == 38


def test_a_canvas_keeps_what_it_is_when_padded():
    canvas = Canvas.of_picture(300, 512, 8, 16, "x")
    assert canvas.padded(5, 4) == evolve(canvas, height=40, pad_height=2)
    assert (canvas.wraps("x"), canvas.wraps("y"), Canvas(8, 8, 8).wraps("x")) == (True, False, False)


@pytest.mark.parametrize("fusion", [Average(), Gaussian()])
def test_one_view_that_begins_elsewhere_is_put_where_it_lies(fusion):
    view, step = View(Span(3, 6, 1, 6), Span(5, 8, 1, 8)), make_step()
    latents, output = (Streams(0).normal((1, 4, 6, 8), name) for name in ("x", "noise"))
    cut = Prediction(view.read(latents)[None], view.read(output)[None], step)
    torch.testing.assert_close(fusion.fuse(step, [view], cut, latents), output)
