"""Plots of results: lines along an axis, grids of two axes, dots and the frontier without axes, costs over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.core.method.metric import Column
from vitrail.errors import ConfigError
from vitrail.experiments.analysis.measurement import Size
from vitrail.experiments.analysis.results import Group, Results
from vitrail.experiments.analysis.statistics import Estimate
from vitrail.experiments.report.figures import (
    ARROWS,
    COLOURS,
    INK,
    MARKERS,
    add_legend,
    colour_of,
    label_panel,
    make_panels,
    plain_axes,
    save_figure,
    slug,
    titled,
)
from vitrail.experiments.report.frontier import draw_frontier
from vitrail.experiments.report.tables import curves, size_text
from vitrail.experiments.spec.experiment import CALLS, CRITICAL, SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = ("-", "--", ":", "-.")  # the next style is used once the colours are used up
SHADES = "cividis"  # a colour map that is readable with colour blindness
DOT_ROW = 0.3  # height of a row of dots in inches
MOST_BANDS = 3  # lines, up to which intervals are drawn as bands
ASIDE, MOST_ASIDE = 0.03, 7  # inches between the error bars of two lines, and number of such offsets
BRIGHT = 0.5  # share of the colour range above which numbers are dark


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
            drawn += draw_frontier(results, groups, columns, folder / f"{slug('frontier', size_text(size))}.png")
    if results.costs and len({group.ranks for group in results.groups}) > 1:
        drawn += [
            _over_ranks(results, size, folder / f"{slug('ranks', size_text(size))}.png") for size in results.sizes
        ]
    return drawn


def _is_known(results: Results, groups: Sequence[Group], column: Column) -> bool:
    return any(not math.isnan(results.estimate(group, column).value) for group in groups)


def _lines(results: Results, groups: Sequence[Group], columns: Sequence[Column], axis: str, out: Path) -> Path:
    """Plot every column over an axis with intervals, one line per method and settings of the other axes."""
    lines = curves(groups, axis)
    without = [group for group in groups if axis not in group.axes]
    figure, panels = make_panels(len(columns), f"{titled(results.title)}over {axis}, {size_text(groups[0].size)}")
    for panel, column in zip(panels, columns, strict=True):
        for number, (name, along) in enumerate(lines.items()):
            points = [(float(group.axes[axis]), results.estimate(group, column)) for group in along]
            _line(figure, panel, number, name, points, bands=len(lines) <= MOST_BANDS)
        for number, group in enumerate(without, len(lines)):
            value = results.estimate(group, column).value
            panel.axhline(value, color=colour_of(number), linestyle=STYLES[1], linewidth=1.2, label=group.row)
        label_panel(panel, axis, column, [float(group.axes[axis]) for along in lines.values() for group in along])
    add_legend(figure, panels[0], len(lines) + len(without))
    return save_figure(figure, out)


def _line(
    figure: Any, panel: Axes, number: int, name: str, points: Sequence[tuple[float, Estimate]], bands: bool
) -> None:
    """Plot a line with its intervals: a band, or error bars with an offset per line where bands would overlap."""
    from matplotlib.transforms import offset_copy

    places, estimates = [place for place, _ in points], [estimate for _, estimate in points]
    style = STYLES[number // len(COLOURS) % len(STYLES)]
    looks: dict[str, Any] = {"color": colour_of(number), "linestyle": style, "marker": MARKERS[number % len(MARKERS)]}
    (line,) = panel.plot(places, [each.value for each in estimates], label=name, linewidth=1.6, markersize=4.5, **looks)
    ends = [each.low for each in estimates], [each.high for each in estimates]
    if bands:
        panel.fill_between(places, *ends, color=colour_of(number), alpha=0.15, linewidth=0)
        return
    bars = panel.vlines(places, *ends, color=colour_of(number), alpha=0.6, linewidth=1.0)
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
            figure, panels = make_panels(len(columns), f"{titled(results.title)}{name}, {size}")
            for panel, column in zip(panels, columns, strict=True):
                _grid(panel, results, here, column, axes)
            drawn.append(save_figure(figure, folder / f"{slug('grid', *axes, name, size)}.png"))
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
    figure, panels = make_panels(
        len(columns), f"{titled(results.title)}{size_text(groups[0].size)}", height, share_rows=True
    )
    for panel, column in zip(panels, columns, strict=True):
        for y, group in enumerate(groups):
            each, colour = results.estimate(group, column), colour_of(y)
            if not math.isnan(each.low):
                panel.plot([each.low, each.high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", alpha=0.6)
            panel.plot([each.value], [y], color=colour, marker="o", markersize=6)
        panel.set_yticks(range(len(groups)), [group.row for group in groups])
        panel.set_ylim(len(groups) - 0.5, -0.5)
        panel.tick_params(axis="y", length=0)
        panel.set_title(column.name + ARROWS[column.better], fontsize=10, color=INK, parse_math=False)
        plain_axes(panel, "x")
    return save_figure(figure, out)


def _over_ranks(results: Results, size: Size, out: Path) -> Path:
    """Plot seconds and the busiest rank's calls over the number of ranks."""
    groups = [group for group in results.at(size) if group.cells]
    known = {cost.name: cost for cost in results.costs}
    columns = [known[SECONDS], known.get(CRITICAL, known[CALLS])]
    figure, panels = make_panels(len(columns), f"{titled(results.title)}cost over ranks, {size_text(size)}")
    names = list(dict.fromkeys(group.curve for group in groups))
    for panel, column in zip(panels, columns, strict=True):
        for number, name in enumerate(names):
            along = sorted((group for group in groups if group.curve == name), key=lambda group: group.ranks)
            points = [(float(group.ranks), results.estimate(group, column)) for group in along]
            _line(figure, panel, number, name, points, bands=len(names) <= MOST_BANDS)
        label_panel(panel, "ranks", column, [])
        panel.set_xticks(sorted({group.ranks for group in groups}))
        panel.set_ylim(bottom=0)
    add_legend(figure, panels[0], len(names))
    return save_figure(figure, out)
