"""Quality against time: which rows no other row surpasses in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.results import Group, Results
from vitrail.experiments.report.figures import (
    COLOURS,
    FAINT,
    HEIGHT,
    INK,
    MARKERS,
    add_legend,
    colour_of,
    label_panel,
    make_panels,
    save_figure,
    titled,
)
from vitrail.experiments.report.tables import size_text
from vitrail.experiments.spec.experiment import SECONDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST = 3  # rows that make a frontier
TALL = 1.5  # height of a panel, relative to one without names of points
LINE = 0.08  # further height in inches for a row of the legend


def frontier(points: Sequence[tuple[float, float]], better: str) -> list[int]:
    """Return the places of the points that no other one surpasses, by rising cost.

    A point is surpassed by one that costs no more and is at least as good, one of the two strictly; equal points are
    kept together. Points with an unknown coordinate are left out.

    Args:
        points: Cost and quality of each.
        better: Preferred direction of quality, "up" or "down".
    """
    sign = 1.0 if better == "up" else -1.0
    known = sorted(
        (cost, -sign * value, place) for place, (cost, value) in enumerate(points) if cost + value == cost + value
    )
    kept: list[int] = []
    best: tuple[float, float] | None = None
    for cost, loss, place in known:
        if best is None or loss < best[1] or (cost, loss) == best:
            kept.append(place)
            best = cost, loss
    return kept


def draw_frontier(results: Results, groups: Sequence[Group], columns: Sequence[Column], out: Path) -> list[Path]:
    """Draw every column with a preferred direction over seconds, and join the rows of the frontier.

    Args:
        results: The data.
        groups: The rows of one size.
        columns: Columns of metrics with known values.
        out: The PNG file.

    Returns:
        The file; nothing without times, such columns, or ``FEWEST`` rows that differ in more than their ranks.
    """
    seconds = next((cost for cost in results.costs if cost.name == SECONDS), None)
    judged = [column for column in columns if column.better != "none"]
    if seconds is None or not judged or len({group.curve for group in groups}) < FEWEST:
        return []
    costs = [results.estimate(group, seconds).value for group in groups]
    height = TALL * HEIGHT + LINE * len(groups) / len(judged)
    title = f"{titled(results.title)}quality against time, {size_text(groups[0].size)}"
    figure, panels = make_panels(len(judged), title, height)
    for panel, column in zip(panels, judged, strict=True):
        _draw_panel(panel, results, groups, column, costs)
    add_legend(figure, panels[0], len(groups))
    return [save_figure(figure, out)]


def _draw_panel(panel: Axes, results: Results, groups: Sequence[Group], column: Column, costs: Sequence[float]) -> None:
    """Draw the rows of a column as points with intervals, and name those of the frontier."""
    estimates = [results.estimate(group, column) for group in groups]
    best = frontier([(cost, each.value) for cost, each in zip(costs, estimates, strict=True)], column.better)
    steps = [(costs[place], estimates[place].value) for place in best]
    panel.plot(*zip(*steps, strict=True) if steps else ((), ()), color=FAINT, linewidth=1.0, drawstyle="steps-post")
    for number, (group, cost, each) in enumerate(zip(groups, costs, estimates, strict=True)):
        look: dict[str, Any] = {"color": colour_of(number), "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
        panel.plot(
            [cost], [each.value], label=group.row, linestyle="none", markersize=6 if number in best else 4, **look
        )
        if not math.isnan(each.low):
            panel.vlines([cost], [each.low], [each.high], color=colour_of(number), alpha=0.3, linewidth=1.0)
    for place in best:
        panel.annotate(
            groups[place].row,
            (costs[place], estimates[place].value),
            xytext=(4, 4 if column.better == "up" else -10),
            textcoords="offset points",
            fontsize=7,
            color=INK,
            parse_math=False,
        )
    label_panel(panel, "seconds a picture", column, [cost for cost in costs if not math.isnan(cost)])
