"""Training curves and samples over time, as one HTML page."""

import html
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

STAGES = ("autoencoder", "judge", "denoiser")
SHOWN = 8  # maximum number of sheets per network, evenly spaced from first to last


def write_page(folder: Path) -> Path:
    """Write ``index.html`` into the folder of the training runs, and plots beside their logs."""
    parts = [_section(folder, stage) for stage in STAGES if (folder / stage / "log.jsonl").exists()]
    body = "\n".join(parts) or "<p>Nothing has been trained in this folder.</p>"
    page = folder / "index.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>Training</title><style>{STYLE}</style>\n{body}\n")
    return page


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read all lines of a log."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def _section(folder: Path, stage: str) -> str:
    lines = read_log(folder / stage / "log.jsonl")
    plot = folder / stage / "curves.png"
    _draw_curves(lines, plot)
    sheets = sorted((folder / stage / "samples").glob("*.png"))
    chosen = sheets if len(sheets) <= SHOWN else [sheets[i * (len(sheets) - 1) // (SHOWN - 1)] for i in range(SHOWN)]
    figures = [_figure(path.relative_to(folder), path.stem) for path in chosen]
    return f"<h1>{stage}</h1>\n" + "\n".join([_figure(plot.relative_to(folder), f"step {lines[-1]['step']}"), *figures])


def _figure(path: Path, caption: str) -> str:
    return (
        f'<figure><img src="{html.escape(str(path))}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def _draw_curves(lines: list[dict[str, Any]], file: Path) -> None:
    """Draw one panel for the loss and one for every measured number."""
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    measured = [(line["step"], line["measured"]) for line in lines if "measured" in line]
    names = sorted({name for _, numbers in measured for name in numbers})
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(4 * (1 + len(names)), 3), squeeze=False)
    if losses:
        axes[0, 0].plot(*zip(*losses, strict=True), linewidth=0.8)
    axes[0, 0].set(title="loss", xlabel="step")
    for axis, name in zip(axes[0, 1:], names, strict=True):
        points = [(step, numbers[name]) for step, numbers in measured if name in numbers]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3)
        axis.set(title=name, xlabel="step")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


STYLE = "body{font-family:sans-serif;max-width:1100px;margin:2em auto}img{max-width:100%}figcaption{color:#555}"
