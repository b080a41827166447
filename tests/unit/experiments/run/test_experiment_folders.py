"""Folders of one experiment as one: merged, refused, and lines that another version wrote or a crash cut off."""

import json
import shutil

import pytest
from attrs import evolve
from test_experiment_measuring import CELLS, ROWS, results_of, seen_in

import tiny_experiment as tiny
from vitrail.cli.report import report_on
from vitrail.errors import ConfigError
from vitrail.experiments.analysis import feature_cache as keeping
from vitrail.experiments.analysis.measurement import load
from vitrail.experiments.report.tables_and_plots import origin_lines
from vitrail.experiments.run.origin import NOT_NOTED
from vitrail.experiments.run.store import Folder, Outcome, merge


@pytest.fixture
def folder(tmp_path):
    return tiny.folder_of(tmp_path / "foxes", ROWS, CELLS)


def test_folders_of_other_cells_are_refused(tmp_path, folder):
    other = tiny.folder_of(tmp_path / "other", ROWS, tiny.cells(ROWS, pairs=3))
    with pytest.raises(ConfigError, match=r"not of the same experiment, 2 cells are in one alone, such as 'dark'"):
        load([folder, other])
    with pytest.raises(ConfigError, match=r"no experiment's folder"):
        load([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="needs the folder"):
        load([])


def test_merging_refuses_other_cells_and_completes_what_was_cut_off(tmp_path, folder, monkeypatch):
    into = tmp_path / "into"
    with pytest.raises(ConfigError, match="not of the same experiment"):
        merge([folder, tiny.folder_of(tmp_path / "other", ROWS, tiny.cells(ROWS, pairs=3))], into)

    def cut(source, target):
        target.write_bytes(source.read_bytes()[:50])
        if source.suffix == ".png":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", cut)
        with pytest.raises(KeyboardInterrupt):
            merge([folder], into)
    for _ in range(2):
        assert merge([into, folder], into).outcomes() == Folder(folder).outcomes()
    for cell in CELLS:
        assert (into / cell.picture).read_bytes() == (folder / cell.picture).read_bytes()
    assert len(list(into.glob("cells*"))) == 1


def test_merging_later_loses_nothing_that_was_merged_before(tmp_path):
    halves = [{cell.address for cell in CELLS[start::2]} for start in range(2)]
    for number, half in enumerate(halves):
        merge([tiny.folder_of(tmp_path / str(number), ROWS, CELLS, half)], tmp_path / "into")
    assert set(Folder(tmp_path / "into").outcomes()) == halves[0] | halves[1]


def test_a_line_that_was_cut_within_a_letter_hides_no_other(folder):
    before = Folder(folder).outcomes()
    with next(folder.glob("cells-*.jsonl")).open("ab") as file:
        file.write('{"cell": "x", "error": "é'.encode()[:-1])
    assert Folder(folder).outcomes() == before
    Folder(folder).append(Outcome(cell="later", error="two\u2028lines"), "0-1")
    assert Folder(folder).outcomes()["later"].error == "two\u2028lines"


def test_what_was_looked_at_is_merged_too(tmp_path):
    halves = [tiny.folder_of(tmp_path / str(turn), ROWS, CELLS, {c.address for c in CELLS[turn::2]}) for turn in (0, 1)]
    for half in halves:
        seen_in([half])
    tiny.LOOKS.clear()
    merge(halves, tmp_path / "into")
    for half in halves:
        keeping.bring(half, tmp_path / "into")
    keeping.bring(halves[0], halves[0])
    results = results_of([tmp_path / "into"])
    assert results.counts() == (8, 0, 0)
    assert tiny.LOOKS == []


def test_merging_into_another_experiment_is_refused(tmp_path, folder):
    other = tiny.folder_of(tmp_path / "other", ROWS, tiny.cells(ROWS, pairs=3))
    before = Folder(other).plan()
    with pytest.raises(ConfigError, match=r"foxes and .*other: not of the same experiment"):
        report_on([folder], other, plots=False)
    assert Folder(other).plan() == before


def test_lines_of_before_there_was_a_field_are_read(folder):
    before = Folder(folder).outcomes()
    (lines,) = folder.glob("cells-*.jsonl")
    tables = [json.loads(line) for line in lines.read_text().splitlines()]
    assert all(table.pop("commit") == "" for table in tables)
    lines.write_text("".join(json.dumps(table) + "\n" for table in tables))
    assert Folder(folder).outcomes() == before


def test_an_outcome_tells_the_commit_that_sampled(folder):
    assert results_of([folder]).commits == {NOT_NOTED: 8}
    found = Folder(folder).outcomes()
    for address, commit in ((CELLS[0].address, "abc"), (CELLS[1].address, "def-dirty")):
        Folder(folder).append(evolve(found[address], commit=commit), "later")
    results = results_of([folder])
    assert results.commits == {"abc": 1, "def-dirty": 1, NOT_NOTED: 6}
    told = [line for line in origin_lines(results) if line.startswith("sampled by")]
    assert told == ["sampled by Vitrail at abc (1); def-dirty (1); a commit that was not noted (6)"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_calls", None),
        ("seconds", "x"),
        ("rows", [None]),
        ("rows", 3),
        ("error", 3),
        ("versions", []),
        ("cell", 1),
    ],
)
def test_a_line_with_other_values_than_an_outcome_has_is_refused(folder, name, value):
    (lines,) = folder.glob("cells-*.jsonl")
    table = json.loads(lines.read_text().splitlines()[0])
    lines.write_text(json.dumps(table | {name: value}) + "\n")
    with pytest.raises(ConfigError, match=r"jsonl, line 1: another version's line"):
        Folder(folder).outcomes()


@pytest.mark.parametrize("change", [{"experiment": 3}, {"cells": None}, {"axes": []}, {"run": None}, {"pair": "x"}])
def test_a_plan_with_other_values_than_it_has_is_refused(folder, change):
    file = folder / "experiment.json"
    table = json.loads(file.read_text())
    if change.keys() <= table.keys():
        table |= change
    else:
        table["cells"][0] |= change
    file.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"experiment\.json: cannot be read"):
        Folder(folder).plan()
