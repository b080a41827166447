"""Plots of ``predict_speedups.py``: speed-ups over ranks, and asynchronous guidance over latency and jitter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

IDEALS = {"ideal view": "#9aa3af", "ideal branch": "#5d6775", "ideal dataflow": "#b9a46a"}
STYLES = {
    "gather": ("#5d6775", "-", "s", "gather at every step"),
    "channel, lag 0": ("#d9822b", "-", "^", "channel, message of the same step"),
    "channel, lag 1": ("#3b6fb6", "--", "o", "channel, message of the step before"),
}


def draw_speedups(rows: Sequence[Mapping], out: Path) -> None:
    """Draw one panel per size: ideals as lines, the prediction, the paper's value."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure = _figure(11, 3.4)
    panels = figure.subplots(1, len(sizes), sharey=True)
    for panel, size in zip(panels, sizes, strict=True):
        mine = [row for row in rows if row["size"] == size]
        ranks = [row["ranks"] for row in mine]
        panel.plot([1, 8], [1, 8], color="#dcdad5", lw=1, label="linear")
        for name, colour in IDEALS.items():
            panel.plot([1, *ranks], [1, *(row[name] for row in mine)], color=colour, lw=1.2, ls="--", label=name)
        best = [max(row["views"], row["branches"], row["dataflow"]) for row in mine]
        panel.plot([1, *ranks], [1, *best], color="#3b6fb6", marker="o", ms=4, label="predicted, whole run")
        panel.plot(
            4, next(row["paper"] for row in mine if row["ranks"] == 4), "D", color="#b3123b", ms=6, label="paper"
        )
        panel.set_title(size, fontsize=10)
        panel.set_xlabel("ranks")
        _dress(panel, [1, 2, 4, 8])
    panels[0].set_ylabel("speed-up over one rank")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(out, dpi=110, metadata={"Software": None})


def draw_async(sweeps: Mapping, latencies: Sequence[float], jitters: Sequence[float], out: Path) -> None:
    """Draw the structure stage's relative time over latency (above) and jitter (below), one column per case.

    Args:
        sweeps: Seconds by case, option and mode of exchange.
        latencies: Latencies in seconds.
        jitters: Jitters as shares.
        out: The PNG file.
    """
    figure = _figure(11, 6.2)
    panels = figure.subplots(2, len(sweeps), sharey="row", squeeze=False)
    for column, ((size, ranks), by_option) in enumerate(sweeps.items()):
        base = by_option["latency_s"]["gather"][0]
        for mode, (colour, line, marker, label) in STYLES.items():
            style = {"color": colour, "ls": line, "marker": marker, "ms": 4, "lw": 1.4, "label": label}
            ticks = range(len(latencies))
            panels[0][column].plot(ticks, [s / base for s in by_option["latency_s"][mode]], **style)
            panels[1][column].plot([100 * j for j in jitters], [s / base for s in by_option["jitter"][mode]], **style)
        panels[0][column].set_title(f"{size} on {ranks} ranks", fontsize=10)
        _dress(panels[0][column], list(range(len(latencies))), [f"{1000 * x:g}" for x in latencies])
        panels[0][column].set_xlabel("latency of a message, ms")
        _dress(panels[1][column], [0, 10, 20, 30])
        panels[1][column].set_xlabel("jitter of a forward, %")
    for row in panels:
        row[0].set_ylabel("structure stage, relative time")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(out, dpi=110, metadata={"Software": None})


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dress(panel: Axes, ticks: Sequence[float], labels: Sequence[str] | None = None) -> None:
    panel.set_xticks(ticks, labels)
    panel.grid(color="#eceae6", lw=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
