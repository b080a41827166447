"""Parts of all figures of reports: colours, panels, labels, legend, and writing a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.core.config.atomic import replacing
from vitrail.core.method.metric import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#26292e")  # palette of Okabe and Ito
MARKERS = "osD^vPX"
INK, FAINT, GRID = "#26292e", "#6b7078", "#e7e5e1"
DPI = 130
WIDTH, HEIGHT, BESIDE = 3.9, 2.9, 3  # size of a panel in inches, and panels per row
LOGARITHMIC = 30  # ratio of an axis' ends from which the axis is logarithmic
ARROWS = {"up": " (higher is better)", "down": " (lower is better)", "none": ""}


def slug(*words: str) -> str:
    """Join words to a file name of lower-case letters, digits, dots and hyphens."""
    return "-".join(re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-.") for word in words)


def make_panels(count: int, title: str, height: float = HEIGHT, share_rows: bool = False) -> tuple[Any, list[Axes]]:
    """Create a figure without a window, with ``count`` panels in rows of ``BESIDE``; ``height`` is in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    beside = min(count, BESIDE)
    below = -(-count // beside)
    figure = Figure(figsize=(WIDTH * beside + 0.6, height * below + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    grid = figure.subplots(below, beside, squeeze=False, sharey="row" if share_rows else False)
    panels = [panel for line in grid for panel in line]
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def label_panel(panel: Axes, axis: str, column: Column, places: Sequence[float]) -> None:
    """Set labels and grid, and a logarithmic axis if its ends differ by a factor of ``LOGARITHMIC``."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_xlabel(axis, parse_math=False)
    panel.set_title(column.name + ARROWS[column.better], fontsize=10, color=INK, parse_math=False)
    if places and min(places) > 0 and max(places) / min(places) >= LOGARITHMIC:
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")  # powers and their multiples would cover each other
        panel.xaxis.set_minor_formatter(NullFormatter())
    plain_axes(panel, "both")


def plain_axes(panel: Axes, lines: Any) -> None:
    """Leave a panel two spines, and a faint grid along "x", "y" or "both"."""
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis=lines, color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, colors=FAINT, labelcolor=INK)


def colour_of(number: int) -> str:
    """Return the colour of a row's number; the palette repeats."""
    return COLOURS[number % len(COLOURS)]


def add_legend(figure: Any, panel: Axes, count: int) -> None:
    """Add a legend below the panels if there is more than one line."""
    if count > 1:
        handles, labels = panel.get_legend_handles_labels()
        beside = min(count, BESIDE)
        figure.legend(handles, labels, loc="outside lower center", ncols=beside, frameon=False, fontsize=8)


def save_figure(figure: Any, out: Path) -> Path:
    """Write the figure atomically."""
    with replacing(out) as part:
        figure.savefig(part, dpi=DPI, metadata={"Software": None})
    return out


def titled(title: str) -> str:
    """Return the beginning of a figure's title for an experiment's title, which may be empty."""
    return f"{title}: " if title else ""
