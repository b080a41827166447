"""What numbers, differences and orders are of: pictures that have a number, pairs that rows share, prompts."""

import pytest
from attrs import evolve, frozen
from test_experiment_tables import hilly, results_of

import tiny_experiment as tiny
from listeners import Silent
from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.gathering import gather_results
from vitrail.experiments.analysis.measurement import load, look
from vitrail.experiments.analysis.picture_sets import common, rankable
from vitrail.experiments.report.tables import tables_of


def lit(tmp_path, **how):
    """Rows of which some pictures are above 100: the even ones, and the last four of eight."""
    rows = [
        tiny.Row("even", lambda pair, size: 150 + pair if pair % 2 == 0 else 50),
        tiny.Row("late", lambda pair, size: 170 + pair if pair > 3 else 50),
    ]
    return results_of(tmp_path, rows, pairs=8, metrics=(tiny.Lights(),), **how)


def test_columns_are_paired_by_the_pictures_that_both_rows_have_them_of(tmp_path):
    found, key = lit(tmp_path), ("late", (64, 64), "light")
    assert [found.estimates[row, (64, 64), "light"].count for row in ("even", "late")] == [4, 4]
    assert [found.estimates[row, (64, 64), "all"].count for row in ("even", "late")] == [8, 8]
    assert (found.differences[key].count, found.differences["late", (64, 64), "all"].count) == (2, 8)
    assert found.differences[key].value == pytest.approx(20.0, abs=1e-4)  # of pairs 4 and 6; the means differ by 22.5
    ranking = next(each for each in found.rankings if each.column == "light")
    assert ranking.count == 2
    first, difference = tables_of(found)[:2]
    assert "Some pictures have no number, so of fewer than n are: light 4." in first.notes
    assert "Some pictures have no number, so of fewer than n are: light 2." in difference.notes


def test_a_share_has_an_interval_inside_its_range_and_an_exact_test(tmp_path):
    found = lit(tmp_path)
    share = found.estimates["even", (64, 64), "share"]
    assert 0.0 <= share.low < share.value == 0.5 < share.high <= 1.0
    assert found.differences["late", (64, 64), "share"].chance == 1.0
    told = "Of share, whole numbers of each picture, a difference must besides pass the exact sign test at 5%."
    tables = {table.title: table.notes for table in tables_of(found)}
    assert told in tables["Difference from even, 64x64"] and told in tables["Order, 64x64"]
    assert told not in tables["64x64"]


def test_a_row_of_one_picture_does_not_end_the_order_of_the_others(tmp_path):
    rows = [tiny.Row("dark", hilly(60)), tiny.Row("light", hilly(90)), tiny.Row("begun", hilly(70))]
    found = results_of(tmp_path, rows, lost=lambda cell: cell.row == "begun" and cell.pair > 0)
    order = next(table for table in tables_of(found) if table.title == "Order, 64x64")
    assert order.rows[0] == ("bright", "6", "light > dark")
    told = "Left out, since too few of its pairs are also the others': begun (1 picture) in bright, distance_c."
    assert told in order.notes


def test_which_rows_are_ranked():
    full, half, other, one = tuple(range(8)), (0, 1, 2, 3), (4, 5, 6, 7), (3,)
    assert rankable({"a": full, "b": half, "c": one}) == ({"a": full, "b": half}, {"c": one})
    assert rankable({"a": full, "b": half, "c": other}) == ({"a": full, "b": half}, {"c": other})
    assert rankable({"a": full, "b": (), "c": half}) == ({"a": full, "c": half}, {})
    assert rankable({"a": one, "b": full}) == ({"a": one, "b": full}, {})  # of two there is nothing else to rank
    assert common([full, half]) == half and common([half, other]) == () == common([])


def test_a_table_says_of_how_many_prompts_its_pictures_are(tmp_path):
    rows = [tiny.Row("dark", hilly(60)), tiny.Row("light", hilly(90))]
    cells = [evolve(c, run=c.run | {"prompt": f"a fox {c.pair % 4}"}) for c in tiny.cells(rows, pairs=8)]
    loaded = load([tiny.folder_of(tmp_path, rows, cells)], tiny.experiment())
    found = gather_results(loaded, look(loaded, Silent()), Silent())
    told = "Pictures of prompts: 8 of 4; all pictures of a prompt are drawn together."
    for table in tables_of(found)[:2]:
        assert told in table.notes
    assert found.estimates["dark", (64, 64), "bright"].prompts == 4


def test_unequal_sets_are_no_better_or_worse_by_what_depends_on_their_number(tmp_path):
    @frozen(kw_only=True)
    class Biased(tiny.Bright):
        columns = (Column(name="FID", better="down", needs_equal_counts=True), Column(name="KID", better="down"))

        def gather(self, features, reference):
            return (features.mean().item(),) * 2

    rows = [tiny.Row("dark", hilly(60)), tiny.Row("light", hilly(90))]
    even = tables_of(results_of(tmp_path / "even", rows, metrics=(Biased(),)))[0]
    assert any(row[2].marked for row in even.rows) and not any("No best" in note for note in even.notes)
    lost = results_of(tmp_path / "uneven", rows, metrics=(Biased(),), lost=lambda c: (c.row, c.pair) == ("dark", 0))
    uneven = tables_of(lost)[0]
    assert not any(row[2].marked for row in uneven.rows) and any(row[3].marked for row in uneven.rows)
    assert any(note.startswith("No best is marked of FID:") for note in uneven.notes)
