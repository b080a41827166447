"""Experiments run for real on a tiny model: resumed, sharded, merged, interrupted, failing, on ranks and on Ray."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import structlog

from command_line import vitrail
from vitrail.errors import OutputError
from vitrail.experiments.run.origin import commit_of_vitrail
from vitrail.experiments.run.peak_memory import STATM
from vitrail.experiments.run.store import Folder, merge
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.recipe import read_recipe

FILE = """
prompts = ["a fox", "a box"]
sizes = ["128"]
methods = ["direct", "asg"]
metrics = []
[run]
num_inference_steps = 2
"""


@pytest.fixture
def experiment(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "grid.toml"
    path.write_text(f'model = "{folder}"\n{FILE}')
    yield path
    structlog.reset_defaults()


def pictures(folder):
    """Pixels of every picture, by file."""
    return {path.name: open_picture(str(path)).tobytes() for path in sorted(folder.glob("pictures/*/*.png"))}


def test_run_then_nothing_is_left_to_do(experiment, monkeypatch, capsys):
    first = vitrail(monkeypatch, capsys, "run", experiment)
    assert first.code == 0
    assert "0 of 4 cells are done" in first.out
    assert "report: vitrail report runs/grid" in first.out
    stored = Folder(experiment.parent / "runs/grid")
    plan, outcomes = stored.plan(), stored.outcomes()
    assert {cell.address for cell in plan.cells} == set(outcomes)
    for cell in plan.cells:
        outcome = outcomes[cell.address]
        assert outcome.error is None
        assert outcome.model_calls == outcome.predicted_calls == outcome.critical_calls > 0
        assert outcome.commit == (commit_of_vitrail() or "")
        assert (outcome.peak_bytes is not None) == STATM.exists()
        assert outcome.native_size == 64
        assert read_recipe(stored.path / cell.picture).run["prompt"] == cell.run["prompt"]
    direct = next(cell for cell in plan.cells if cell.row == "direct")
    assert outcomes[direct.address].rows == ()
    asg = next(cell for cell in plan.cells if cell.row == "asg")
    assert outcomes[asg.address].machine.endswith("cpu") and "thread" in outcomes[asg.address].machine
    assert 32 <= len(outcomes[asg.address].rows) * 8 < 128  # jittered windows of 64 pixels, on cells of 8
    assert all(0 < row < 128 and row % 8 == 0 for row in outcomes[asg.address].rows)
    before = pictures(stored.path)
    again = vitrail(monkeypatch, capsys, "run", experiment)
    assert "4 of 4 cells are done" in again.out
    assert pictures(stored.path) == before


def test_shards_merge_to_what_one_process_does(experiment, monkeypatch, capsys):
    vitrail(monkeypatch, capsys, "run", experiment, "--out", "whole")
    for i in range(2):
        vitrail(monkeypatch, capsys, "run", experiment, "--out", f"part{i}", "--shard", f"{i}/2")
    parts = [experiment.parent / f"part{i}" for i in range(2)]
    merged = merge(parts, experiment.parent / "merged")
    assert sum(len(pictures(part)) for part in parts) == 4
    assert pictures(merged.path) == pictures(experiment.parent / "whole")
    assert set(merged.outcomes()) == set(Folder(experiment.parent / "whole").outcomes())


def test_a_lost_picture_or_a_cut_line_is_done_again(experiment, monkeypatch, capsys):
    vitrail(monkeypatch, capsys, "run", experiment)
    path = experiment.parent / "runs/grid"
    before = pictures(path)
    next(path.glob("pictures/*/*.png")).unlink()
    lines = path / "cells-0of1.jsonl"
    lines.write_text(lines.read_text()[:-40])
    answer = vitrail(monkeypatch, capsys, "run", experiment)
    assert answer.code == 0
    assert pictures(path) == before
    assert len(Folder(path).outcomes()) == 4


def test_a_failing_cell_is_recorded_and_stops_nothing(experiment, monkeypatch, capsys):
    from vitrail.experiments.run.cell_run import Worker

    sample = Worker._sample

    def failing(self, cell, *rest):
        if cell.row == "asg" and cell.pair == 0:
            raise RuntimeError("planted")
        return sample(self, cell, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Worker, "_sample", failing)
        answer = vitrail(monkeypatch, capsys, "run", experiment)
    assert answer.code == 1
    assert "failed: asg, 128x128, seed 0: RuntimeError: planted" in answer.out
    assert "1 cell failed; the same command tries again" in answer.out
    outcomes = Folder(experiment.parent / "runs/grid").outcomes().values()
    assert sorted(outcome.error is None for outcome in outcomes) == [False, True, True, True]
    assert vitrail(monkeypatch, capsys, "run", experiment).code == 0
    assert all(outcome.error is None for outcome in Folder(experiment.parent / "runs/grid").outcomes().values())


def test_a_full_disk_ends_the_work_with_one_error_and_what_was_done_is_kept(experiment, monkeypatch, capsys):
    from vitrail.experiments.run import cell_run as running

    save, path = running.save_picture, experiment.parent / "runs/grid"

    def full(*arguments):
        if len(pictures(path)) == 1:
            raise OutputError(path / "picture.png", "No space left on device")
        save(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(running, "save_picture", full)
        answer = vitrail(monkeypatch, capsys, "run", experiment)
    assert answer.code == 1
    assert "picture.png: cannot be written: No space left on device; mend that, and the same" in answer.err
    assert [outcome.error for outcome in Folder(path).outcomes().values()] == [None]
    assert vitrail(monkeypatch, capsys, "run", experiment).code == 0


@pytest.mark.thorough
def test_ctrl_c_and_a_kill_in_the_middle_lose_nothing_that_was_done(experiment, monkeypatch, capsys):
    from vitrail.experiments.run.cell_run import Worker

    lines, sample = experiment.parent / "runs/grid/cells-0of1.jsonl", Worker._sample

    def count():
        return lines.read_text().count("\n") if lines.exists() else 0

    def interrupted(self, cell, folder, on_step):
        once = iter([signal.SIGINT] if count() == 2 else [])

        def step():
            on_step()
            for number in once:
                signal.raise_signal(number)

        return sample(self, cell, folder, step)

    more = ["--set", "repeats=3"]
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "_sample", interrupted)
        answer = vitrail(monkeypatch, capsys, "run", experiment, *more)
    assert answer.code == 130
    assert "stopping at the next step" in answer.out
    assert "the same command goes on from here" in answer.out
    assert count() == 2
    command = [sys.executable, "-m", "vitrail", "run", str(experiment), *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=experiment.parent, env=os.environ)
    while process.poll() is None and count() < 4:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 4 <= count() < 12
    assert vitrail(monkeypatch, capsys, "run", experiment, *more).code == 0
    vitrail(monkeypatch, capsys, "run", experiment, *more, "--out", "whole")
    assert pictures(experiment.parent / "runs/grid") == pictures(experiment.parent / "whole")


def test_ctrl_c_awaits_a_cell_that_cannot_be_interrupted(experiment, monkeypatch, capsys):
    from vitrail.experiments.run.cell_run import Worker

    on_ranks = Worker._on_ranks

    def interrupted(self, cell):
        signal.raise_signal(signal.SIGINT)
        return on_ranks(self, cell)

    monkeypatch.setattr(Worker, "_on_ranks", interrupted)
    answer = vitrail(monkeypatch, capsys, "run", experiment, "--set", "ranks=[2]", "--set", "comm=in-process")
    assert answer.code == 130
    assert "stopping once the cell in work is done" in answer.out
    assert len(pictures(experiment.parent / "runs/grid")) == 1


@pytest.mark.parametrize("comm", ["in-process", "gloo"])
def test_ranks_give_the_same_pictures_and_their_share_of_calls(experiment, monkeypatch, capsys, comm):
    sets = ["--set", "ranks=[1,2]", "--set", f"comm={comm}", "--set", "prompts=['a fox']"]
    sets += ["--set", "run.row_batch=1", "--set", "methods=['asg']"]
    assert vitrail(monkeypatch, capsys, "run", experiment, *sets).code == 0
    stored = Folder(experiment.parent / "runs/grid")
    outcomes, cells = stored.outcomes(), {cell.row: cell for cell in stored.plan().cells}
    assert set(cells) == {"asg, 1 rank", "asg, 2 ranks"}
    shown = pictures(stored.path)
    one, two = cells["asg, 1 rank"], cells["asg, 2 ranks"]
    assert shown[f"{one.address}.png"] == shown[f"{two.address}.png"]
    assert outcomes[two.address].model_calls == outcomes[one.address].model_calls
    assert outcomes[two.address].critical_calls < 0.7 * outcomes[one.address].model_calls


def test_heat_maps_are_figures(experiment, monkeypatch, capsys):
    experiment.write_text(experiment.read_text() + '[[heatmaps]]\nmasking = "up-block-attention"\npictures = 1\n')
    assert vitrail(monkeypatch, capsys, "run", experiment).code == 0
    stored = Folder(experiment.parent / "runs/grid")
    (cell,) = [cell for cell in stored.plan().cells if cell.kind == "heatmap"]
    assert stored.is_done(cell, stored.outcomes())


def test_mistakes_are_told_before_a_model_is_loaded(experiment, monkeypatch, capsys):
    from vitrail.experiments.run.cell_run import Worker

    monkeypatch.setattr(Worker, "load", None)
    for sets, expected in (
        (["methods.1.method=asgg"], "did you mean 'asg'?"),
        (["run.scheduler=DDIM"], "no scheduler named 'DDIM'"),
        (["model=nowhere"], "no model or folder 'nowhere'"),
        (["methods.1.set=['stages.0.guidance.0.scal=1']"], "has no key 'scal'"),
        (["axes=[{name='w',values=[1],set=['stages.0.guidance.0.scal={value}'],methods=['asg']}]"], "no key 'scal'"),
        (["axes=[{name='s',option='scheduler',values=['DDIM']}]"], "no scheduler named 'DDIM'"),
        (["axes=[{name='g',option='guidance_scale',values=['much']}]"], "row 'direct, g much':\n  $.guidance_scale"),
        (["prompts=[]", "prompts_file=nowhere.txt"], "nowhere.txt: cannot be read"),
        (["heatmaps=[{masking='pfs'}]"], "did you mean 'pfsa'?"),
        (["heatmaps=[{masking='pfsa',at='2'}]"], "heat map 'pfsa': at = '2': write shares of the steps"),
    ):
        answer = vitrail(monkeypatch, capsys, "run", experiment, *(w for s in sets for w in ("--set", s)))
        assert answer.code == 2
        assert expected in answer.err
    for words, expected in (
        (["--executor", "rya"], "did you mean 'ray'?"),
        (["--workers", "2"], "--workers is of a Ray cluster"),
        (["--out", experiment], "there can be no such folder"),
    ):
        answer = vitrail(monkeypatch, capsys, "run", experiment, *words)
        assert (answer.code, expected in answer.err) == (2, True)
    assert not (experiment.parent / "runs").exists()


def test_dry_run_writes_nothing(experiment, monkeypatch, capsys):
    answer = vitrail(monkeypatch, capsys, "run", experiment, "--dry-run")
    assert answer.code == 0
    assert "4 cells: 2 rows, sizes 128x128" in answer.out
    assert not (experiment.parent / "runs").exists()


@pytest.mark.thorough
def test_a_ray_cluster_gives_the_same_pictures(experiment, monkeypatch, capsys):
    pytest.importorskip("ray", reason='needs the extra: pip install "vitrail[ray]"')
    vitrail(monkeypatch, capsys, "run", experiment, "--out", "here")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    answer = vitrail(monkeypatch, capsys, "run", experiment, "--out", "ray", "--executor", "ray", "--workers", "1")
    assert answer.code == 0
    assert pictures(experiment.parent / "ray") == pictures(experiment.parent / "here")
    lines = (experiment.parent / "ray/cells-0of1.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 4


def test_a_report_of_two_merged_folders(experiment, monkeypatch, capsys):
    sets = ["--set", "metrics=['seams']", "--set", "resamples=20", "--set", "repeats=2"]
    for i in range(2):
        vitrail(monkeypatch, capsys, "run", experiment, "--out", f"part{i}", "--shard", f"{i}/2", *sets)
    lone = vitrail(monkeypatch, capsys, "report", "part0", "part1")
    assert lone.code == 2
    assert "say which by --out" in lone.err
    late = vitrail(monkeypatch, capsys, "report", "part0", "--set", "sizes.0.pictures=1")
    assert (late.code, "--set sizes: is sampled already" in late.err) == (2, True)
    answer = vitrail(monkeypatch, capsys, "report", "part0", "part1", "--out", "both")
    assert answer.code == 0
    assert "pictures: 8 of 8, 0 missing, 0 failed" in answer.out
    both = experiment.parent / "both"
    written = {path.name for path in both.iterdir()}
    assert {"report.html", "tables.csv", "tables.tex", "tables.md", "plots", "sheets"} <= written
    assert "vitrail replay pictures/" in (both / "report.html").read_text()


def test_the_page_names_a_command_that_works_in_its_folder(experiment, monkeypatch, capsys, folder):
    sets = ["--set", f"model={os.path.relpath(folder, experiment.parent)}", "--set", "methods=['direct']"]
    assert vitrail(monkeypatch, capsys, "run", experiment, *sets).code == 0
    home = experiment.parent / "runs/grid"
    assert vitrail(monkeypatch, capsys, "report", home, "--no-plots").code == 0
    command = re.search(r'"command":"vitrail (replay [^"]*)"', (home / "report.html").read_text())[1]
    monkeypatch.chdir(home)
    answer = vitrail(monkeypatch, capsys, *shlex.split(command))
    assert answer.code == 0, answer.err
    assert open_picture("again.png").tobytes() in pictures(home).values()


def test_compare_writes_one_sheet_with_what_was_measured(experiment, monkeypatch, capsys, folder):
    words = ["compare", "a fox", "--methods", "direct,asg", "--size", "2x", "--steps", "2", "--model", folder]
    answer = vitrail(monkeypatch, capsys, *words, "--out", "side-by-side")
    assert answer.code == 0
    told = answer.out.split("looking")[-1]
    assert all(word in told for word in ("method", "time", "calls", "seams", "direct", "asg", "MiB"))
    assert open_picture(str(experiment.parent / "side-by-side/comparison.png")).width > 640
    assert "known: " in vitrail(monkeypatch, capsys, "compare", "a fox", "--methods", "dirct").err


def test_compare_shows_what_there_is_if_a_method_fails(experiment, monkeypatch, capsys, folder):
    from vitrail.experiments.run.cell_run import Worker

    sample, lost = Worker._sample, {"direct", "asg"}

    def failing(self, cell, *rest):
        if cell.row in lost:
            raise RuntimeError("planted")
        return sample(self, cell, *rest)

    monkeypatch.setattr(Worker, "_sample", failing)
    words = ["compare", "a fox", "--methods", "direct,asg", "--size", "128", "--steps", "2", "--model", folder]
    sheet = experiment.parent / "out/comparison.png"
    assert vitrail(monkeypatch, capsys, *words, "--out", "out").code == 1
    assert not sheet.exists()
    lost.remove("asg")
    answer = vitrail(monkeypatch, capsys, *words, "--out", "out")
    assert answer.code == 1
    assert "failed: direct, 128x128, seed 0: RuntimeError: planted" in answer.out
    assert sheet.exists()
    assert "\nasg " in answer.out


@pytest.mark.parametrize(("accelerators", "actors", "share"), [(8, 3, 1.0), (4, 4, 1.0), (1, 2, 0.5), (0, 2, 0.0)])
def test_an_actor_asks_for_one_accelerator_at_most(accelerators, actors, share):
    from vitrail.experiments.run.ray_executor import share_of

    assert share_of(accelerators, actors) == share


def test_check_reads_an_experiment(experiment, monkeypatch, capsys):
    answer = vitrail(monkeypatch, capsys, "check", experiment)
    assert answer.code == 0
    assert "sound, an experiment of 2 methods, 0 axes and 1 sizes" in answer.out
    answer = vitrail(monkeypatch, capsys, "check", experiment, "--set", "methods.0.method=dirct")
    assert answer.code == 2
    assert "did you mean 'direct'?" in answer.err
