"""Progress to a terminal and to a pipe, with a clock of its own."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from vitrail.cli import progress

PLAN = SimpleNamespace(
    stages=(SimpleNamespace(first_step=0, num_steps=2, work=1.0), SimpleNamespace(first_step=2, num_steps=8, work=5.0)),
    canvas=None,
    first_step=0,
)


def shown(monkeypatch, bar, num_images=1):
    """What a run of ten steps prints whose every view takes two seconds."""
    out, now = io.StringIO(), 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    meter = progress.Progress(Console(file=out, force_terminal=bar, width=100), bar=bar)
    meter.expect(PLAN, num_images)
    with meter:
        for _ in range(num_images):
            meter.vitrail_run_start()
            for index in range(10):
                now += 2.0 * (1 if index < 2 else 5)
                meter.vitrail_step_end(SimpleNamespace(index=index, stage=int(index >= 2)))
    return out.getvalue()


def test_time_left_knows_that_later_steps_cost_more(monkeypatch):
    lines = shown(monkeypatch, bar=False).splitlines()
    assert lines[0] == "step 2/10, stage 1/2, about 80 s left"
    assert lines[1] == "step 3/10, stage 2/2, about 70 s left"
    assert lines[-1] == "step 10/10, stage 2/2, decoding"


def test_pauses_between_lines_grow(monkeypatch):
    lines = shown(monkeypatch, bar=False, num_images=12).splitlines()
    assert len(lines) < 40
    assert lines[0] == "picture 1/12, step 2/10, stage 1/2, about 17 min left"
    assert [line for line in lines if "decoding" in line] == ["picture 12/12, step 10/10, stage 2/2, decoding"]


def test_bar_leaves_an_empty_line(monkeypatch):
    text = shown(monkeypatch, bar=True)
    assert "step 9/10, stage 2/2" in text or "decoding" in text
    assert text.rpartition("\n")[2].endswith("\x1b[2K")  # the bar's own line is wiped


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (5400, "1 h 30 min")]
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
