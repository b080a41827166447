"""Plots of results: lines along an axis, grids of two axes, dots without axes, costs over ranks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.core.config.atomic import replacing
from vitrail.core.method.metric import Column
from vitrail.errors import ConfigError
from vitrail.experiments.analysis.measurement import Size
from vitrail.experiments.analysis.results import Group, Results
from vitrail.experiments.analysis.statistics import Estimate
from vitrail.experiments.report.tables import curves, size_text
from vitrail.experiments.spec.experiment import CALLS, CRITICAL, SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#26292e")  # palette of Okabe and Ito
STYLES = ("-", "--", ":", "-.")  # the next style is used once the colours are used up
MARKERS = "osD^vPX"
INK, FAINT, GRID = "#26292e", "#6b7078", "#e7e5e1"
SHADES = "cividis"  # a colour map that is readable with colour blindness
DPI = 130
WIDTH, HEIGHT, BESIDE = 3.9, 2.9, 3  # size of a panel in inches, and panels per row
DOT_ROW = 0.3  # height of a row of dots in inches
MOST_BANDS = 3  # lines, up to which intervals are drawn as bands
ASIDE, MOST_ASIDE = 0.03, 7  # inches between the error bars of two lines, and number of such offsets
BRIGHT = 0.5  # share of the colour range above which numbers are dark
LOGARITHMIC = 30  # ratio of an axis' ends from which the axis is logarithmic
ARROWS = {"up": " (higher is better)", "down": " (lower is better)", "none": ""}


def check_matplotlib() -> None:
    """Refuse to draw plots without matplotlib, before anything expensive.

    Raises:
        ConfigError: If matplotlib is not installed.
    """
    try:
        import matplotlib as _  # noqa: F401
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed; pip install 'vitrail[plot]'") from error


def draw_plots(results: Results, folder: Path) -> list[Path]:
    """Draw the plots that fit the experiment's axes and ranks.

    Args:
        results: The data.
        folder: Target folder; created if missing.

    Returns:
        The PNG files, in the order in which to show them.

    Raises:
        ConfigError: If matplotlib is missing.
    """
    check_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    axes = list(results.numeric_axes)
    for size in results.sizes:
        groups = [group for group in results.at(size) if group.cells]
        columns = [column for column in results.columns if _is_known(results, groups, column)]
        if not groups:
            continue
        timed = [*columns, *(cost for cost in results.costs if cost.name == SECONDS)]
        for axis in axes if timed else ():
            drawn.append(_lines(results, groups, timed, axis, folder / f"{slug('over', axis, size_text(size))}.png"))
        for place, one in enumerate(axes):
            for two in axes[place + 1 :]:
                drawn += _grids(results, groups, columns, (one, two), folder)
        if not axes and columns:
            drawn.append(_dots(results, groups, columns, folder / f"{slug('rows', size_text(size))}.png"))
    if results.costs and len({group.ranks for group in results.groups}) > 1:
        drawn += [
            _over_ranks(results, size, folder / f"{slug('ranks', size_text(size))}.png") for size in results.sizes
        ]
    return drawn


def slug(*words: str) -> str:
    """Join words to a file name of lower-case letters, digits, dots and hyphens."""
    return "-".join(re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-.") for word in words)


def _is_known(results: Results, groups: Sequence[Group], column: Column) -> bool:
    return any(not math.isnan(results.estimate(group, column).value) for group in groups)


def _lines(results: Results, groups: Sequence[Group], columns: Sequence[Column], axis: str, out: Path) -> Path:
    """Plot every column over an axis with intervals, one line per method and settings of the other axes."""
    lines = curves(groups, axis)
    without = [group for group in groups if axis not in group.axes]
    figure, panels = _panels(len(columns), f"{_titled(results)}over {axis}, {size_text(groups[0].size)}")
    for panel, column in zip(panels, columns, strict=True):
        for number, (name, along) in enumerate(lines.items()):
            points = [(float(group.axes[axis]), results.estimate(group, column)) for group in along]
            _line(figure, panel, number, name, points, bands=len(lines) <= MOST_BANDS)
        for number, group in enumerate(without, len(lines)):
            value = results.estimate(group, column).value
            panel.axhline(value, color=_colour(number), linestyle=STYLES[1], linewidth=1.2, label=group.row)
        _dress(panel, axis, column, [float(group.axes[axis]) for along in lines.values() for group in along])
    _legend(figure, panels[0], len(lines) + len(without))
    return _save(figure, out)


def _line(
    figure: Any, panel: Axes, number: int, name: str, points: Sequence[tuple[float, Estimate]], bands: bool
) -> None:
    """Plot a line with its intervals: a band, or error bars with an offset per line where bands would overlap."""
    from matplotlib.transforms import offset_copy

    places, estimates = [place for place, _ in points], [estimate for _, estimate in points]
    style = STYLES[number // len(COLOURS) % len(STYLES)]
    looks: dict[str, Any] = {"color": _colour(number), "linestyle": style, "marker": MARKERS[number % len(MARKERS)]}
    (line,) = panel.plot(places, [each.value for each in estimates], label=name, linewidth=1.6, markersize=4.5, **looks)
    ends = [each.low for each in estimates], [each.high for each in estimates]
    if bands:
        panel.fill_between(places, *ends, color=_colour(number), alpha=0.15, linewidth=0)
        return
    bars = panel.vlines(places, *ends, color=_colour(number), alpha=0.6, linewidth=1.0)
    aside = (number % MOST_ASIDE - MOST_ASIDE // 2) * ASIDE
    for artist in (line, bars):  # offset after plotting, so that the data limits are unchanged
        artist.set_transform(offset_copy(panel.transData, figure, x=aside, units="inches"))


def _grids(
    results: Results, groups: Sequence[Group], columns: Sequence[Column], axes: tuple[str, str], folder: Path
) -> list[Path]:
    """Plot every column over two axes as coloured cells, one figure per method and settings of the other axes."""
    drawn = []
    for name, here in curves(groups, *axes).items() if columns else ():
        if all(len({group.axes[axis] for group in here}) > 1 for axis in axes):
            size = size_text(here[0].size)
            figure, panels = _panels(len(columns), f"{_titled(results)}{name}, {size}")
            for panel, column in zip(panels, columns, strict=True):
                _grid(panel, results, here, column, axes)
            drawn.append(_save(figure, folder / f"{slug('grid', *axes, name, size)}.png"))
    return drawn


def _grid(panel: Axes, results: Results, groups: Sequence[Group], column: Column, axes: tuple[str, str]) -> None:
    """Draw one panel: a coloured cell with its value for each two settings."""
    places, rows = (sorted({group.axes[axis] for group in groups}, key=float) for axis in axes)
    values = [[math.nan] * len(places) for _ in rows]
    for group in groups:
        x, y = places.index(group.axes[axes[0]]), rows.index(group.axes[axes[1]])
        values[y][x] = results.estimate(group, column).value
    known = [value for line in values for value in line if not math.isnan(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    high = max(high, low + 10.0**-column.decimals)  # differences below the shown decimals get no colour
    panel.imshow(values, cmap=SHADES, origin="lower", aspect="auto", vmin=low, vmax=high)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if not math.isnan(value):
                colour = INK if (value - low) / (high - low) > BRIGHT else "white"
                text = f"{value:.{column.decimals}f}"
                panel.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    panel.set_xticks(range(len(places)), places)
    panel.set_yticks(range(len(rows)), rows)
    panel.set_xlabel(axes[0], parse_math=False)
    panel.set_ylabel(axes[1], parse_math=False)
    panel.set_title(column.name + ARROWS[column.better], fontsize=10, color=INK, parse_math=False)


def _dots(results: Results, groups: Sequence[Group], columns: Sequence[Column], out: Path) -> Path:
    """Plot each row as a dot with its interval, one panel per column."""
    height = DOT_ROW * len(groups) + 0.8
    figure, panels = _panels(len(columns), f"{_titled(results)}{size_text(groups[0].size)}", height, share_rows=True)
    for panel, column in zip(panels, columns, strict=True):
        for y, group in enumerate(groups):
            each, colour = results.estimate(group, column), _colour(y)
            if not math.isnan(each.low):
                panel.plot([each.low, each.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.6)
            panel.plot([each.value], [y], color=colour, marker="o", markersize=6)
        panel.set_yticks(range(len(groups)), [group.row for group in groups])
        panel.set_ylim(len(groups) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
        panel.set_title(column.name + ARROWS[column.better], fontsize=10, color=INK, parse_math=False)
        _plain(panel, "x")
    return _save(figure, out)


def _over_ranks(results: Results, size: Size, out: Path) -> Path:
    """Plot seconds and the busiest rank's calls over the number of ranks."""
    groups = [group for group in results.at(size) if group.cells]
    known = {cost.name: cost for cost in results.costs}
    columns = [known[SECONDS], known.get(CRITICAL, known[CALLS])]
    figure, panels = _panels(len(columns), f"{_titled(results)}cost over ranks, {size_text(size)}")
    names = list(dict.fromkeys(group.curve for group in groups))
    for panel, column in zip(panels, columns, strict=True):
        for number, name in enumerate(names):
            along = sorted((group for group in groups if group.curve == name), key=lambda group: group.ranks)
            points = [(float(group.ranks), results.estimate(group, column)) for group in along]
            _line(figure, panel, number, name, points, bands=len(names) <= MOST_BANDS)
        _dress(panel, "ranks", column, [])
        panel.set_xticks(sorted({group.ranks for group in groups}))
        panel.set_ylim(bottom=0)
    _legend(figure, panels[0], len(names))
    return _save(figure, out)


def _titled(results: Results) -> str:
    return f"{results.title}: " if results.title else ""


def _panels(count: int, title: str, height: float = HEIGHT, share_rows: bool = False) -> tuple[Any, list[Axes]]:
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


def _dress(panel: Axes, axis: str, column: Column, places: Sequence[float]) -> None:
    """Set labels and grid, and a logarithmic axis if its ends differ by a factor of ``LOGARITHMIC``."""
    panel.set_xlabel(axis, parse_math=False)
    panel.set_title(column.name + ARROWS[column.better], fontsize=10, color=INK, parse_math=False)
    if places and min(places) > 0 and max(places) / min(places) >= LOGARITHMIC:
        panel.set_xscale("log")
    _plain(panel, "both")


def _plain(panel: Axes, lines: Any) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis=lines, color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, colors=FAINT, labelcolor=INK)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _legend(figure: Any, panel: Axes, count: int) -> None:
    """Add a legend below the panels if there is more than one line."""
    if count > 1:
        handles, labels = panel.get_legend_handles_labels()
        beside = min(count, BESIDE)
        figure.legend(handles, labels, loc="outside lower center", ncols=beside, frameon=False, fontsize=8)


def _save(figure: Any, out: Path) -> Path:
    """Write the figure atomically."""
    with replacing(out) as part:
        figure.savefig(part, dpi=DPI, metadata={"Software": None})
    return out
