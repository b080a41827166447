"""Shares of regions: they add up to one, mirror, complete each other, and follow the picture and not the cells."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.config.region import Region
from vitrail.core.engine.asked import AskedEntry, AskedPairs
from vitrail.core.engine.micro_batches import split_rows
from vitrail.core.engine.region_areas import area_of_box, area_of_mask, feathered, shares_of
from vitrail.core.engine.regions import PlacedRegion, Regions
from vitrail.core.geometry.views import Canvas, Patches, Span, View
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError

SIXTEENTHS = st.integers(0, 15).flatmap(
    lambda a: st.tuples(st.just(a / 16), st.integers(a + 1, 16).map(lambda b: b / 16))
)
CANVASES = st.builds(
    Canvas.of_picture,
    st.integers(64, 400),
    st.integers(64, 400),
    st.just(8),
    st.just(8),
    st.sampled_from(["none", "x", "y", "xy"]),
)


def regions(*placed):
    return Regions([PlacedRegion(i, Region(**each)) for i, each in enumerate(placed)], "a field")


@given(canvas=CANVASES, x=SIXTEENTHS, y=SIXTEENTHS, feather=st.sampled_from([0.0, 0.03, 0.1, 0.5]))
def test_two_boxes_with_a_common_edge_leave_nothing_between_them(canvas, x, y, feather):
    """However soft the edge is; and what a box takes from the rest it takes once."""
    left, right = (feathered(area_of_box(box, canvas), feather, canvas) for box in ((0, 0, 0.5, 1), (0.5, 0, 1, 1)))
    shares = shares_of(torch.stack([left, right]), [1.0, 1.0], canvas)
    assert not shares[0].any()
    box = feathered(area_of_box((x[0], y[0], x[1], y[1]), canvas), feather, canvas)
    alone = shares_of(box[None], [3.0], canvas)
    assert torch.equal(alone.sum(0), torch.ones_like(alone[0])) and torch.equal(alone[1], box)


@given(x=SIXTEENTHS, y=SIXTEENTHS, feather=st.sampled_from([0.0, 0.1, 0.25]))
def test_a_mirrored_box_is_the_mirrored_area(x, y, feather):
    canvas = Canvas.of_picture(256, 384, 8, 8)
    box, mirrored = (x[0], y[0], x[1], y[1]), (1 - x[1], y[0], 1 - x[0], y[1])
    areas = [feathered(area_of_box(each, canvas), feather, canvas) for each in (box, mirrored)]
    assert torch.allclose(areas[0].flip(-1), areas[1], rtol=0, atol=2**-16)  # one level of rounding
    if feather == 0:
        assert torch.equal(areas[0].flip(-1), areas[1])


def test_a_box_covers_the_same_part_of_a_picture_of_any_size():
    for side in (128, 200, 512, 1000):
        canvas = Canvas.of_picture(side, 2 * side, 8, 16)
        area = area_of_box((0.25, 0.5, 0.75, 1.0), canvas)
        assert area.mean().item() == pytest.approx(0.25, abs=0.04)
        assert area[-1, canvas.inner[1] // 2] == 1 and area[0].sum() == 0


def test_a_mask_of_any_size_is_the_box_that_it_shows():
    canvas = Canvas.of_picture(256, 384, 8, 8)
    for scale in (1, 3, 8):
        mask = torch.zeros(32 * scale, 48 * scale)
        mask[8 * scale : 24 * scale, : 24 * scale] = 1
        assert torch.equal(area_of_mask(mask, canvas), area_of_box((0, 0.25, 0.5, 0.75), canvas))


def test_a_feather_is_a_ramp_across_the_edge_that_a_border_of_the_picture_has_not():
    canvas = Canvas.of_picture(128, 128, 8, 8)
    row = feathered(area_of_box((0, 0, 0.5, 1), canvas), 0.25, canvas)[0]  # four cells
    assert row[5:11].tolist() == [1, 0.875, 0.625, 0.375, 0.125, 0] and row[0] == 1
    wrapped = Canvas.of_picture(128, 128, 8, 8, "x")
    assert feathered(area_of_box((0, 0, 0.5, 1), wrapped), 0.25, wrapped)[0, 0] < 1


def test_overlapping_regions_share_by_weight():
    both = regions({"box": (0, 0, 0.75, 1), "prompt": "a", "weight": 3}, {"box": (0.25, 0, 1, 1), "prompt": "b"})
    shares = both.shares(Canvas.of_picture(128, 128, 8, 8))[:, 0]
    assert shares[:, 0].tolist() == [0, 1, 0] and shares[:, 8].tolist() == [0, 0.75, 0.25]
    assert shares[:, 15].tolist() == [0, 0, 1]


def test_an_area_without_a_cell_is_refused():
    canvas = Canvas.of_picture(128, 256, 8, 8)
    with pytest.raises(ConfigError, match=r"regions\.0: its box holds the centre of none of the 16x32 latent cells"):
        regions({"box": (0.01, 0, 0.015, 1), "prompt": "a"}).shares(canvas)
    black = PlacedRegion(0, Region(mask="m.png", prompt="a"), torch.zeros(4, 4), "0")
    with pytest.raises(ConfigError, match="its mask is black in all"):
        Regions([black]).shares(canvas)


def windows(*starts):
    return Patches([View(Span(0, 16), Span(start, 8)) for start in starts])


def test_a_window_is_asked_once_for_every_text_that_lies_on_it():
    canvas = Canvas.of_picture(128, 256, 8, 8)
    both = regions({"box": (0, 0, 0.25, 1), "prompt": "a"}, {"box": (0.375, 0, 0.5, 1), "prompt": "b"})
    pairs = both.asked(canvas, windows(0, 8, 12, 24))
    assert pairs.pairs == ((0, 1), (1, 0), (1, 2), (2, 0), (2, 2), (3, 0))
    assert regions().asked(canvas, windows(0, 8)).is_plain
    assert both.asked(canvas, windows(16, 24)).is_plain


def test_views_that_exchange_values_are_all_asked_with_all_texts_and_mixed_where_values_come_from():
    canvas = Canvas.of_picture(64, 128, 8, 8)
    views = [View(Span(0, 8), Span(start, 8)) for start in (0, 8)]
    swap = torch.tensor([1, 0]).view(2, 1, 1, 1, 1).expand(2, 1, 4, 8, 8)
    one = regions({"box": (0, 0, 0.5, 1), "prompt": "a"})
    pairs = one.asked(canvas, Patches(views, swap))
    assert pairs.pairs == ((0, 0), (0, 1), (1, 0), (1, 1))
    rows = torch.arange(4.0).view(4, 1, 1, 1, 1, 1).expand(4, 2, 1, 4, 8, 8)  # every row its own number
    mixed = pairs.mixed(rows)
    assert (mixed[0] == 0).all() and (mixed[1] == 3).all()  # the first entry holds the right half, which is the rest's


@given(seed=st.integers(0, 20), counts=st.lists(st.integers(1, 3), min_size=1, max_size=5), size=st.integers(1, 5))
def test_no_micro_batch_captures_two_rows(seed, counts, size):
    view = View(Span(0, 2), Span(0, 2))
    chosen = Streams(seed).uniform((sum(counts),), "captured") < 0.5
    asked = [AskedEntry(view, "a", is_captured=bool(each), words=i) for i, each in enumerate(chosen)]
    rows = torch.arange(float(len(asked))).view(-1, 1, 1, 1, 1).expand(-1, 1, 4, 2, 2)
    batches = split_rows(asked, rows, ("uncond", "cond"), size)
    assert [each.branches[row] for each in batches for row in each.capture] == ["cond"] * int(chosen.sum())
    assert all(len(each.capture) <= 1 and len(each.views) <= size for each in batches)
    joined = torch.cat([each.model_input for each in batches])
    assert torch.equal(joined, rows.repeat_interleave(2, 0).flatten(0, 1))


def test_one_answer_is_the_entrys_own_bit_for_bit():
    rows = Streams(0).normal((3, 2, 1, 4, 2, 2), "rows")
    shares = torch.full((3, 1, 1, 2, 2), 0.5)
    mixed = AskedPairs([(0, 1), (1, 0), (1, 2)], shares).mixed(rows)
    assert torch.equal(mixed[0], rows[0]) and torch.equal(mixed[1], 0.5 * rows[1] + 0.5 * rows[2])
