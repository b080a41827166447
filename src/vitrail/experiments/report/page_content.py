"""From an experiment's results to its page: pictures with metrics, recipes and commands, tables, plots."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.measurement import CheckedMetric, Loaded, Seen
from vitrail.experiments.analysis.results import Results
from vitrail.experiments.report.formats import as_page_table
from vitrail.experiments.report.page import Page, PagePicture, PagePlot
from vitrail.experiments.report.tables_and_plots import ExperimentReport, source_line
from vitrail.experiments.spec.cells import Cell
from vitrail.sampling.replaying import located

COSTS = ("seconds", "model_calls", "peak_bytes")


def page_of(report: ExperimentReport, folder: Path) -> Page:
    """Return the page of a report on one folder, to be written in that folder."""
    results, loaded = report.results, report.loaded
    cells = [cell for cell in loaded.plan.cells if cell.kind == "picture"]
    return Page(
        title=results.title or folder.name,
        source=results.source,
        notes=[note for note in report.notes if note != source_line(results)],
        rows=tuple(dict.fromkeys(group.row for group in results.groups)),
        sizes=results.sizes,
        pictures=tuple(_pictures(cells, loaded, report.seen, folder, costs=bool(results.costs))),
        tables=tuple(as_page_table(table) for table in report.tables),
        plots=(*_heat_maps(results, folder), *_plots(report.plots, folder)),
    )


def _pictures(cells: Sequence[Cell], loaded: Loaded, seen: Seen, folder: Path, costs: bool) -> Iterator[PagePicture]:
    """Yield every finished or failed cell, with its costs if ``costs``."""
    for cell in cells:
        outcome = loaded.outcomes.get(cell.address)
        failed = loaded.has_failed(cell)
        if cell.address not in loaded.homes and not failed:
            continue
        assert outcome is not None
        run = cell.config()
        plain: dict[str, Any] = {
            "row": cell.row,
            "method": cell.method,
            "size": cell.size,
            "pair": cell.pair,
            "prompt": run.prompt,
            "seed": run.seed,
            "recipe": {"run": cell.run, "method": cell.composition},
        }
        if failed:
            yield PagePicture(**plain, error=outcome.error)
        else:
            yield PagePicture(
                **plain,
                file=cell.picture,
                metrics=metric_values(cell, loaded, seen),
                command=shlex.join(["vitrail", "replay", cell.picture, *located(run, folder), "-o", "again.png"]),
                **({name: getattr(outcome, name) for name in COSTS} if costs else {}),
            )


def metric_values(cell: Cell, loaded: Loaded, seen: Seen) -> dict[str, str]:
    """Return the formatted values of one picture by column name, of the metrics of single pictures.

    Args:
        cell: A finished cell.
        loaded: The experiment.
        seen: The features of its pictures.
    """
    numbers: dict[str, str] = {}
    for metric in loaded.experiment.metrics:
        extractor: Any = metric.extractor
        if extractor == metric and not metric.needs_reference:
            values = CheckedMetric(metric).gather(seen.of(extractor, [cell.address]), None)
            numbers |= {
                column.name: _written(column, value) for column, value in zip(metric.columns, values, strict=True)
            }
    return numbers


def _written(column: Column, value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{0 if column.is_whole else column.decimals}f}"


def _heat_maps(results: Results, folder: Path) -> Iterator[PagePlot]:
    for figure in results.figures:
        if figure.file is not None:
            title = f"{figure.label}: {figure.prompt}, seed {figure.seed}"
            yield PagePlot(title=title, file=figure.file.relative_to(folder).as_posix())


def _plots(plots: Sequence[Path], folder: Path) -> Iterator[PagePlot]:
    for plot in plots:
        yield PagePlot(title=plot.stem.replace("-", " "), file=plot.relative_to(folder).as_posix())
