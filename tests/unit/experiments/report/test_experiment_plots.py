"""Plots, contact sheets and the whole report of tiny folders."""

import io
import sys

import pytest
from attrs import evolve
from PIL import Image, ImageFont
from rich.console import Console
from test_experiment_tables import grid_rows, hilly, results_of

import tiny_experiment as tiny
from vitrail.cli.listener import ConsoleListener
from vitrail.errors import ConfigError
from vitrail.experiments.report.figures import slug
from vitrail.experiments.report.page_content import page_of
from vitrail.experiments.report.plots import draw_plots
from vitrail.experiments.report.sheets import GAP, draw_sheets, folded
from vitrail.experiments.report.tables_and_plots import write_report
from vitrail.experiments.run.store import Folder

ONE = (tiny.Bright(),)


def names(files):
    return [file.name for file in files]


def test_rows_without_an_axis_are_dots(tmp_path):
    rows = [tiny.Row("dark", hilly(60)), tiny.Row("50% of $a_b$", hilly(90))]
    found = results_of(tmp_path / "foxes", rows, ((64, 64), (64, 128)), pairs=3)
    drawn = draw_plots(found, tmp_path / "plots")
    assert names(drawn) == ["rows-64x64.png", "rows-128x64.png"]
    with Image.open(drawn[0]) as picture:
        assert len(set(picture.convert("RGB").get_flattened_data())) > 50
    assert sorted((tmp_path / "plots").iterdir()) == sorted(drawn)


def test_numbers_on_axes_are_lines_and_grids(tmp_path):
    one = results_of(
        tmp_path / "one", [tiny.Row("direct", hilly(50)), *grid_rows(["0", "1", "40"])], pairs=3, metrics=ONE
    )
    assert names(draw_plots(one, tmp_path)) == ["over-w-64x64.png"]
    assert draw_plots(evolve(one, costs=(), columns=()), tmp_path) == []
    two = results_of(tmp_path / "two", grid_rows(["0.1", "2", "4", "100"], ["0", "0.5"]), pairs=3, metrics=ONE)
    assert names(draw_plots(two, tmp_path)) == ["over-w-64x64.png", "over-r-64x64.png", "grid-w-r-asg-64x64.png"]


def test_ranks_have_a_plot_of_cost(tmp_path):
    rows = [tiny.Row(f"asg, {n} rank{'s' * (n > 1)}", hilly(60), ranks=n, method="asg") for n in (1, 2, 4)]
    found = results_of(tmp_path / "foxes", rows, pairs=3)
    assert {group.curve for group in found.groups} == {"asg"}
    assert names(draw_plots(found, tmp_path)) == ["rows-64x64.png", "ranks-64x64.png"]
    assert names(draw_plots(evolve(found, costs=()), tmp_path)) == ["rows-64x64.png"]


def test_unfinished_experiments_are_drawn_as_far_as_they_are(tmp_path):
    rows = [*grid_rows(["0", "1"], ["2", "3"]), tiny.Row("gone", hilly(60))]
    found = results_of(
        tmp_path / "few", rows, pairs=2, metrics=ONE, lost=lambda cell: cell.row in ("gone", "asg, w 0, r 2")
    )
    assert len(draw_plots(found, tmp_path / "few-plots")) == 3
    assert len(draw_sheets(found, tmp_path / "few-sheets")) == 2
    none = results_of(tmp_path / "none", rows, pairs=2, lost=lambda cell: True)
    assert draw_plots(none, tmp_path / "no-plots") == []
    assert draw_sheets(none, tmp_path / "no-sheets") == []


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitrail\[plot\]'"):
        write_report([tmp_path], tmp_path, ConsoleListener(Console(file=io.StringIO())))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_sheet_holds_every_row_and_pair(tmp_path, suffix):
    rows = [tiny.Row("dark", lambda pair, size: 40 + pair), tiny.Row("light", lambda pair, size: 200 + pair)]
    found = results_of(tmp_path / "foxes", rows, ((64, 128),), pairs=5, lost=lambda c: (c.row, c.pair) == ("light", 1))
    (file,) = draw_sheets(found, tmp_path / "sheets", suffix, cell=32, shown=3)
    assert file.name == f"pictures-128x64{suffix}"
    sheet = Image.open(file).convert("RGB")
    left, top = sheet.width - 3 * (32 + GAP), sheet.height - 2 * (16 + GAP)
    middles = [[sheet.getpixel((left + x * 36 + 3, top + y * 20 + 3))[0] for x in range(3)] for y in range(2)]
    assert middles == [pytest.approx([40, 41, 42], abs=3), pytest.approx([200, 236, 202], abs=3)]  # one is empty


def test_a_sheet_of_two_axes_is_of_one_pair(tmp_path):
    def row(w, r):
        axes = {"w": str(w), "r": str(r)}
        return tiny.Row(f"asg, {w}, {r}", lambda pair, size: 50 * w + 20 * r + pair, axes, method="asg")

    rows = [row(w, r) for w in (3, 1, 2) for r in (0, 2)]
    found = results_of(tmp_path / "foxes", rows, pairs=2)
    file = draw_sheets(found, tmp_path, ".png", cell=40)[1]
    assert file.name == "pictures-w-r-asg-64x64.png"
    sheet = Image.open(file).convert("RGB")
    left, top = sheet.width - 3 * (40 + GAP), sheet.height - 2 * (40 + GAP)
    middles = [[sheet.getpixel((left + x * 44 + 20, top + y * 44 + 20))[0] for x in range(3)] for y in range(2)]
    assert middles == [[150, 50, 100], [190, 90, 140]]  # places in the plan's order


def test_words_are_folded_and_cut_off():
    font = ImageFont.load_default(size=14)
    text = folded("a fox on a snow field under a very wide sky", 100, font, 2)
    assert text.count("\n") == 1
    assert text.endswith(" ...")
    assert folded("a fox", 500, font, 3) == "a fox"
    assert folded("incomprehensibilities", 10, font, 3) == "incomprehensibilities"


def test_slugs():
    assert slug("over", "skip residual / w", "64x64") == "over-skip-residual-w-64x64"


def test_a_report_is_whole(tmp_path):
    rows = [tiny.Row("dark", hilly(60)), tiny.Row("light", hilly(90))]
    planned = tiny.cells(rows, pairs=4)
    heat = [tiny.with_kind(cell, "heatmap") for cell in planned[:2]]
    folder = tiny.folder_of(
        tmp_path / "foxes", rows, [*planned, *heat], {c.address for c in [*planned[1:], heat[0]]}, {planned[0].address}
    )
    file = io.StringIO()
    report = write_report(
        [folder],
        tmp_path / "out",
        ConsoleListener(Console(file=file, width=100)),
        baseline="light",
        experiment=tiny.experiment(),
    )
    there = ["differences.csv", "orders.csv", "plots", "sheets", "tables.csv", "tables.md", "tables.tex"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == there
    assert all(path.exists() for path in (*report.plots, *report.sheets))
    results = report.results
    text = (tmp_path / "out" / "tables.md").read_text()
    assert text.startswith("# Foxes & hounds\n")
    for told in (
        "7 of 8, 0 missing, 1 failed",
        "out of foxes",
        "a desk (8)",
        "torch 2.9",
        "vitrail run foxes.toml",
        "1 of 2",
    ):
        assert told in text
        assert told in file.getvalue()
    assert "Difference from light" in text
    assert [(figure.label, figure.file is None) for figure in results.figures] == [("dark", False), ("light", True)]
    assert results.counts() == (7, 0, 1)
    assert Folder(folder).plan().command == results.command


def test_a_report_without_plots(tmp_path):
    rows = [tiny.Row("dark", hilly(60))]
    folder = tiny.folder_of(tmp_path / "foxes", rows, tiny.cells(rows, pairs=3))
    listener = ConsoleListener(Console(file=io.StringIO(), width=100))
    write_report([folder], tmp_path / "out", listener, plots=False, experiment=tiny.experiment())
    assert not (tmp_path / "out" / "plots").exists()
    assert "Difference" not in (tmp_path / "out" / "tables.md").read_text()


def test_a_page_has_costs_if_they_are_told_of(tmp_path):
    rows = [tiny.Row("dark", hilly(60))]
    folder = tiny.folder_of(tmp_path / "foxes", rows, tiny.cells(rows, pairs=3))
    listener = ConsoleListener(Console(file=io.StringIO(), width=100))
    for costs in (True, False):
        told = write_report([folder], folder, listener, plots=False, costs=costs, experiment=tiny.experiment(ONE))
        shown = page_of(told, folder).pictures
        assert [each.seconds is not None and each.model_calls is not None for each in shown] == 3 * [costs]


def test_plots_stay_as_long_as_they_are_of_the_same_numbers(tmp_path):
    rows = [tiny.Row("dark", hilly(60)), tiny.Row("light", hilly(90))]
    cells, listener = tiny.cells(rows, pairs=3), ConsoleListener(Console(file=io.StringIO(), width=100))
    folder = tiny.folder_of(tmp_path / "foxes", rows, cells, {cell.address for cell in cells[:-1]})

    def plots(**how):
        report = write_report([folder], tmp_path / "out", listener, experiment=tiny.experiment(ONE), **how)
        assert list(report.plots) == sorted((tmp_path / "out" / "plots").glob("*"))
        return names(report.plots)

    assert plots() == plots(plots=False) == ["rows-64x64.png"]
    tiny.folder_of(folder, rows, cells)
    assert plots(plots=False) == []
