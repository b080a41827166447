"""The frontier of quality against time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_experiment_tables import hilly, results_of

import tiny_experiment as tiny
from vitrail.core.method.metric import Column
from vitrail.experiments.report.frontier import draw_frontier, frontier
from vitrail.experiments.report.plots import draw_plots

SOME = st.one_of(st.integers(0, 4).map(float), st.just(math.nan))  # few values, so that ties are common
ONE = (tiny.Bright(),)


def surpasses(one, other, better):
    at_least = one[1] >= other[1] if better == "up" else one[1] <= other[1]
    return one != other and one[0] <= other[0] and at_least


@given(points=st.lists(st.tuples(SOME, SOME), max_size=12), better=st.sampled_from(["up", "down"]))
def test_it_keeps_what_nothing_surpasses_and_no_more(points, better):
    kept = frontier(points, better)
    known = [place for place, point in enumerate(points) if not any(map(math.isnan, point))]
    for place in known:
        beaten = any(surpasses(points[other], points[place], better) for other in known)
        assert (place in kept) is not beaten
    assert set(kept) <= set(known)
    assert [points[place][0] for place in kept] == sorted(points[place][0] for place in kept)


def rows(count):
    return [tiny.Row(f"method-{number}", hilly(20 * number + 20)) for number in range(count)]


@pytest.mark.parametrize(("count", "drawn"), [(2, False), (3, True), (20, True)])
def test_three_rows_with_times_and_a_direction_are_drawn(tmp_path, count, drawn):
    found = results_of(tmp_path / "foxes", rows(count), pairs=3, metrics=ONE)
    names = [file.name for file in draw_plots(found, tmp_path / "plots")]
    assert ("frontier-64x64.png" in names) is drawn
    if drawn:
        with Image.open(tmp_path / "plots/frontier-64x64.png") as picture:
            assert len(set(picture.convert("RGB").get_flattened_data())) > 50


def test_columns_without_a_direction_have_no_frontier(tmp_path):
    found = results_of(tmp_path / "foxes", rows(3), pairs=3, metrics=ONE)
    plain = [Column(name=column.name, decimals=1) for column in found.columns]
    assert draw_frontier(found, found.groups, plain, tmp_path / "none.png") == []
