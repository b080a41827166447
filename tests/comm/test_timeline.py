"""Timelines: a picture of traces, or a message that says what is wrong with them."""

import sys

import pytest
from PIL import Image

from loads import relayed, traces
from vitrail.cli.timeline import draw
from vitrail.comm.trace.chrome import trace_text
from vitrail.comm.trace.cost_model import CostModel
from vitrail.errors import ConfigError

COST = CostModel(row_s=0.1, latency_s=0.03, jitter=0.2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A synchronous and an asynchronous run."""
    folder = tmp_path_factory.mktemp("traces")
    paths = [folder / f"{exchange}.json" for exchange in ("gather", "channel")]
    for path in paths:
        path.write_text(trace_text(traces(relayed(path.stem), COST, 3)), encoding="utf-8")
    return paths


def test_two_runs_make_a_picture(files, tmp_path):
    out = tmp_path / "figure.png"
    draw(files, ["synchronous", "asynchronous"], out)
    with Image.open(out) as picture:
        assert picture.width > 800 and picture.height > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 8
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


def test_the_picture_says_what_it_shows(files, tmp_path, monkeypatch):
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    out = tmp_path / "figure.svg"
    draw(files, ["synchronous", "asynchronous"], out)
    text = out.read_text()
    wanted = [
        "synchronous",
        "asynchronous",
        "rank 0",
        "rank 2",
        "seconds",
        "makespan",
        "exposed communication",
        "waiting",
    ]
    assert all(word in text for word in wanted)


def test_equal_traces_make_equal_pictures(files, tmp_path):
    for name in ("a.png", "b.png"):
        draw(files[:1], ["a run"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_one_label_a_trace(files, tmp_path):
    with pytest.raises(ConfigError, match="2 traces, 1 labels"):
        draw(files, ["only one"], tmp_path / "figure.png")
    with pytest.raises(ConfigError, match="0 traces"):
        draw([], [], tmp_path / "figure.png")


@pytest.mark.parametrize(("name", "told"), [("figure.gif", ".png, .svg or .pdf"), ("no/where.png", "no folder")])
def test_a_target_that_cannot_be_is_refused_before_any_work(tmp_path, name, told):
    with pytest.raises(ConfigError, match=told):
        draw([tmp_path / "missing.json"], ["x"], tmp_path / name)


def test_a_bad_trace_is_named(files, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(ConfigError, match=r"bad\.json"):
        draw([files[0], bad], ["a", "b"], tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


def test_without_matplotlib_the_way_out_is_told(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"vitrail\[plot\]"):
        draw(files, ["a", "b"], tmp_path / "figure.png")
