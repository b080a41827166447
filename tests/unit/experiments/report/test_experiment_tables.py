"""Tables of results: what is in them, what is marked, and as what text."""

import csv
import io
import math
import re

import pytest
from attrs import evolve
from rich.console import Console

import tiny_experiment as tiny
from listeners import Silent
from vitrail.cli.console import PIPE_WIDTH
from vitrail.cli.listener import show
from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.gathering import gather_results
from vitrail.experiments.analysis.measurement import load, look
from vitrail.experiments.analysis.statistics import Estimate
from vitrail.experiments.report.formats import (
    as_csv,
    as_latex,
    as_markdown,
    as_page_table,
    differences_as_csv,
    escaped_csv,
    escaped_latex,
    orders_as_csv,
)
from vitrail.experiments.report.tables import Heading, Number, Table, curves, size_text, tables_of

BOTH = (tiny.Bright(), tiny.Spread())


def hilly(level):
    return lambda pair, size: level + 7 * (5 * pair % 11)


def results_of(path, rows, sizes=((64, 64),), pairs=6, resamples=200, metrics=BOTH, **how):
    cells = tiny.cells(rows, sizes, pairs)
    if lost := how.pop("lost", None):
        how["done"] = {cell.address for cell in cells if not lost(cell)}
    how["failed"] = {cell.address for cell in cells if how.get("failing", lambda cell: False)(cell)}
    how.pop("failing", None)
    loaded = load([tiny.folder_of(path, rows, cells, **how)], tiny.experiment(metrics, resamples))
    return gather_results(loaded, look(loaded, Silent()), Silent())


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    rows = [tiny.Row("a_dark", hilly(60)), tiny.Row("light", hilly(90)), tiny.Row("as light, too", hilly(91))]
    return results_of(
        tmp_path_factory.mktemp("foxes"),
        rows,
        ((64, 64), (64, 128)),
        lost=lambda cell: cell.row == "light" and cell.pair == 2,
        failing=lambda cell: cell.row == "light" and cell.pair == 3 and cell.size == (64, 64),
    )


def printed(tables, width=PIPE_WIDTH):
    file = io.StringIO()
    for table in tables:
        show(table, Console(file=file, width=width, markup=False, highlight=False, soft_wrap=True))
    return file.getvalue()


def test_which_tables_there_are(results):
    assert [table.title for table in tables_of(results)] == [
        "64x64",
        "128x64",
        "Difference from a_dark, 64x64",
        "Difference from a_dark, 128x64",
        "Order, 64x64",
        "Order, 128x64",
    ]


def test_a_row_says_how_many_of_its_pictures_there_are(results):
    small, wide, difference, *_ = tables_of(results)
    assert [row[1] for row in small.rows] == ["6", "4/6", "6"]
    assert [row[1] for row in wide.rows] == ["6", "5/6", "6"]
    assert "n is pictures done of those planned: 1 failed and 1 missing." in small.notes
    assert [row[1] for row in difference.rows] == ["4", "6"]


def test_every_row_that_may_be_the_best_is_marked(results):
    first = tables_of(results)[0]
    bright, spread = ([row[column].marked for row in first.rows] for column in (2, 3))
    assert [round(row[2].estimate.value) for row in first.rows] == [96, 120, 127]
    assert first.rows[2][2].estimate.low < 102 and first.rows[0][2].estimate.high > 115  # t(5) 26 / sqrt(6) = 28
    assert bright == [True, True, True]
    assert spread == [False, False, False]  # no direction is better


def test_a_row_that_is_far_from_the_best_is_not_marked(tmp_path):
    rows = [tiny.Row("dark", lambda pair, size: 10 + pair), tiny.Row("light", lambda pair, size: 200 + pair)]
    first = tables_of(results_of(tmp_path, rows, metrics=(tiny.Bright(),)))[0]
    assert [row[2].marked for row in first.rows] == [False, True]


def test_a_difference_is_marked_if_it_excludes_nothing_but_zero(results):
    difference = tables_of(results)[2]
    light, as_light = difference.rows
    assert (light[2].text, light[2].marked) == ("+30.0", True)
    assert (as_light[2].text, as_light[2].marked) == ("+31.0", True)
    assert not as_light[3].marked  # the same spread
    assert as_light[3].text == "+0.00"


def test_order_tells_apart_what_pairs_tell_apart(results):
    order = next(table for table in tables_of(results) if table.title == "Order, 64x64")
    assert order.rows[0] == ("bright", "4", "as light, too > light > a_dark")


def test_nothing_is_told_of_order_without_draws(tmp_path):
    found = results_of(tmp_path, [tiny.Row("dark", hilly(60)), tiny.Row("light", hilly(90))], resamples=0)
    tables = tables_of(found)
    assert [table.title for table in tables] == ["64x64", "Difference from dark, 64x64"]
    assert tables[0].rows[1][2].interval == ""
    assert "[" not in printed(tables)


def grid_rows(*axes):
    """Rows over one axis, or over two."""
    if len(axes) == 1:
        return [
            tiny.Row(f"{method}, w {w}", hilly(60 + len(w)), {"w": w}, method=method)
            for method in ("asg", "cut")
            for w in axes[0]
        ]
    return [tiny.Row(f"asg, w {w}, r {r}", hilly(60), {"w": w, "r": r}, method="asg") for w in axes[0] for r in axes[1]]


def test_a_table_for_each_curve_over_an_axis_of_numbers(tmp_path):
    found = results_of(tmp_path, [tiny.Row("direct", hilly(50)), *grid_rows(["8", "1", "0.5"])], pairs=3)
    assert found.numeric_axes == {"w": (8.0, 1.0, 0.5)}
    tables = {table.title: table for table in tables_of(found)}
    assert [row[0] for row in tables["asg over w, 64x64"].rows] == ["0.5", "1", "8"]
    assert "cut over w, 64x64" in tables
    assert len([title for title in tables if "over" in title]) == 2


def test_no_second_table_where_rows_are_the_axis(tmp_path):
    rows = [row for row in grid_rows(["0", "1"]) if row.method == "asg"]
    assert not [table.title for table in tables_of(results_of(tmp_path, rows, pairs=3)) if "over" in table.title]


def test_places_that_are_no_numbers_stay_in_order(tmp_path):
    found = results_of(tmp_path, grid_rows(["soft", "0.5", "hard"]), pairs=3)
    assert found.axes == {"w": ("soft", "0.5", "hard")}
    assert found.numeric_axes == {}
    along = curves(found.at((64, 64)), "w")["asg"]
    assert [group.axes["w"] for group in along] == ["soft", "hard", "0.5"]  # but a number


def test_csv_has_every_number_in_full(results):
    lines = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [(line["size"], line["row"]) for line in lines[:4]] == [
        ("64x64", "a_dark"),
        ("64x64", "light"),
        ("64x64", "as light, too"),
        ("128x64", "a_dark"),
    ]
    assert (lines[1]["planned"], lines[1]["failed"], lines[1]["bright n"]) == ("6", "1", "4")
    for line, group in zip(lines, results.groups, strict=True):
        for column in (*results.columns, *results.costs):
            found = results.estimate(group, column)
            assert float(line[column.name]) == found.value
            assert float(line[f"{column.name} low"]) == found.low
            assert float(line[f"{column.name} high"]) == found.high


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1", "-1-1"])
def test_a_cell_that_a_spreadsheet_would_compute_is_text(results, text):
    shown = "'" + text.replace("\r", "\\r")
    assert escaped_csv(text) == shown
    group = evolve(results.groups[0], row=text, method=text)
    line = next(csv.DictReader(io.StringIO(as_csv(evolve(results, groups=[group])))))
    assert (line["row"], line["method"]) == (shown, shown)


@pytest.mark.parametrize("cell", ["-1", "+1.5e3", "-inf", "fox", "1-1", "", 3, -3.5])
def test_numbers_and_plain_words_stay_as_they_are(cell):
    assert escaped_csv(cell) == cell


def test_csv_of_differences_and_orders(results):
    lines = list(csv.DictReader(io.StringIO(differences_as_csv(results))))
    assert len(lines) == 4
    assert {line["baseline"] for line in lines} == {"a_dark"}
    assert float(lines[0]["bright"]) == results.differences["light", (64, 64), "bright"].value
    orders = list(csv.DictReader(io.StringIO(orders_as_csv(results))))
    assert len(orders) == 2 * 2 * 6  # sizes, columns with a direction, ordered pairs of three rows
    light = next(o for o in orders if (o["row"], o["other row"], o["column"]) == ("light", "a_dark", "bright"))
    assert float(light["share of draws better"]) == 1.0
    assert light["told apart"] == "yes"
    apart = {(o["size"], o["column"], frozenset((o["row"], o["other row"]))): o["told apart"] for o in orders}
    for ranking in results.rankings:
        for (one, two), sure in ranking.apart.items():
            assert ranking.apart[two, one] == sure
            assert apart[size_text(ranking.size), ranking.column, frozenset((one, two))] == ("yes" if sure else "no")


def test_a_terminal_of_a_hundred_columns_is_wide_enough(results):
    text = printed(tables_of(results))
    assert max(map(len, text.splitlines())) <= 120  # notes are sentences
    grids = [line for line in text.splitlines() if "  " in line]
    assert max(map(len, grids)) <= PIPE_WIDTH
    assert "4/6" in text


def wide_table(columns):
    number = Number(estimate=Estimate(value=123.456, low=120.0, high=130.0, count=9), marked=True)
    heads = [Heading(name="row"), *(Heading(name=f"column {i}", better="down") for i in range(columns))]
    return Table(title="wide", head=heads, rows=[("a row with a name", *[number] * columns)] * 2, mark="good")


@pytest.mark.parametrize("width", [60, 100])
def test_a_wide_table_is_printed_in_parts(width):
    lines = printed([wide_table(15)], width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("row ") for line in lines) > 1
    assert [int(found) for found in re.findall(r"column (\d+) ↓", "\n".join(lines))] == list(range(15))
    assert sum(line.count("123.46 [120.00, 130.00]*") for line in lines) == 30
    assert lines[-1] == "*: good."


@pytest.mark.parametrize("name", ["[bold]a", "x[/]"])
def test_names_are_no_markup(name):
    number = Number(estimate=Estimate(value=1.0))
    assert name in printed([Table(title=name, head=[Heading(name=name), Heading(name="n")], rows=[(name, number)])])


def test_markdown_has_equally_many_cells_in_every_line(results):
    for table in tables_of(results):
        lines = [line for line in as_markdown(table).splitlines() if line.startswith("|")]
        assert len(lines) == len(table.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.head) + 1}
    assert r"| a\_dark | 6 |" in as_markdown(tables_of(results)[0])
    assert "**+30.0**" in as_markdown(tables_of(results)[2])


def test_a_page_has_the_same_numbers_with_places_instead_of_marks(results):
    table = tables_of(results)[2]
    shown = as_page_table(table)
    assert shown.best[0] == (0, 2)
    assert shown.rows[0][:2] == ("light", "4")
    assert shown.rows[0][2].startswith("+30.0")
    assert not any("*" in text for row in shown.rows for text in row)
    assert shown.note.startswith("Bold: excludes 0.")


def test_latex_is_escaped_and_whole(results):
    for table in tables_of(results):
        text = as_latex(table)
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(table.rows) + 1
        assert {line.count(" & ") for line in rows} == {len(table.head) - 1}
        assert text.count("{") == text.count("}")
        assert not re.search(r"(?<!\\)[_%]", text)
    assert r"a\_dark" in as_latex(tables_of(results)[0])
    assert r"\textbf{+30.0}" in as_latex(tables_of(results)[2])


def test_what_latex_would_take_for_commands():
    assert escaped_latex(r"50% of a_b & {c} \d #1 $2 ~ ^") == (
        r"50\% of a\_b \& \{c\} \textbackslash{}d \#1 \$2 \textasciitilde{} \textasciicircum{}"
    )


@pytest.mark.parametrize(
    ("estimate", "text", "interval"),
    [
        (Estimate(value=1.234, low=1.0, high=2.0), "1.23", "[1.00, 2.00]"),
        (Estimate(value=20.0, low=20.0, high=20.0), "20.00", ""),
        (Estimate(value=20.0), "20.00", ""),
        (Estimate(value=math.nan), "–", ""),
        (Estimate(value=-0.001, low=-1.0, high=1.0), "-0.00", "[-1.00, 1.00]"),
    ],
)
def test_a_number_as_text(estimate, text, interval):
    number = Number(estimate=estimate)
    assert (number.text, number.interval) == (text, interval)


def test_a_skewed_interval_is_shown_as_it_is_everywhere():
    """0.5 in [0.1, 1.7] excludes 0; half of its length is 0.8, which would say that it does not."""
    skewed = Number(estimate=Estimate(value=0.5, low=0.1, high=1.7), decimals=1, marked=True, signed=True)
    table = Table(title="t", head=[Heading(name="row"), Heading(name="x")], rows=[("a", skewed)])
    assert "+0.5 [+0.1, +1.7]*" in printed([table])
    assert as_page_table(table).rows[0][1] == "+0.5 [+0.1, +1.7]"
    assert r"| a | **+0.5** \[+0.1, +1.7\] |" in as_markdown(table)
    assert r"\textbf{+0.5} {\scriptsize [+0.1, +1.7]}" in as_latex(table)
    below = evolve(skewed, estimate=Estimate(value=-0.5, low=-1.7, high=-0.1))
    assert r"[$-$1.7, $-$0.1]" in as_latex(evolve(table, rows=[("a", below)]))


def test_a_number_that_no_row_has_is_a_dash(tmp_path):
    rows = [tiny.Row("there", hilly(60)), tiny.Row("gone", hilly(60))]
    found = results_of(tmp_path, rows, lost=lambda cell: cell.row == "gone")
    row = tables_of(found)[0].rows[1]
    assert row[1] == "0/6"
    assert {cell.text for cell in row[2:]} == {"–"}
    assert math.isnan(found.estimate(found.groups[1], Column(name="bright")).value)
