"""``vitrail report``: compute an experiment's metrics and write tables, plots and contact sheets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
from attrs import evolve, field, frozen

from vitrail.core.config.atomic import write_text
from vitrail.core.config.fields import as_tuple
from vitrail.experiments.analysis.gathering import baseline_of, gather_results
from vitrail.experiments.analysis.measurement import Listener, Loaded, Seen, load, look
from vitrail.experiments.analysis.results import Results
from vitrail.experiments.analysis.statistics import LEVEL
from vitrail.experiments.report.formats import (
    LATEX_HEAD,
    as_csv,
    as_latex,
    as_markdown,
    differences_as_csv,
    escaped_markdown,
    orders_as_csv,
)
from vitrail.experiments.report.plots import check_matplotlib, draw_plots
from vitrail.experiments.report.sheets import draw_sheets
from vitrail.experiments.report.tables import Table, by_size, in_order, tables_of
from vitrail.experiments.spec.experiment import Experiment
from vitrail.sampling.discovery import registry

TABLE = "tables.csv"
FEW = 12  # maximum number of rows for which a terminal shows rankings
DIGITS = 12  # shown digits of a digest


@frozen(kw_only=True, eq=False)
class ExperimentReport:
    """Content of a written report, as input of other formats such as the page.

    Attributes:
        results: The numbers.
        loaded: The experiment.
        seen: The features of its pictures.
        tables: All tables.
        plots: Files of the plots, in the order in which to show them.
        sheets: Files of the contact sheets, in the order in which to show them.
        notes: Lines on the provenance of the numbers.
    """

    results: Results
    loaded: Loaded
    seen: Seen
    tables: tuple[Table, ...] = field(converter=as_tuple)
    plots: tuple[Path, ...] = field(converter=as_tuple)
    sheets: tuple[Path, ...] = field(converter=as_tuple)
    notes: tuple[str, ...] = field(converter=as_tuple)


class ReportListener(Listener, Protocol):
    """Receives progress, texts and tables of a report."""

    def say(self, lines: Iterable[str] | str) -> None:
        """Show one or more lines of text."""

    def show(self, table: Table) -> None:
        """Show a table of results."""


def write_report(
    folders: Sequence[Path],
    out: Path,
    listener: ReportListener,
    *,
    baseline: str | None = None,
    plots: bool = True,
    costs: bool = True,
    experiment: Experiment | None = None,
) -> ExperimentReport:
    """Compute an experiment's metrics and write its tables, plots and contact sheets.

    Args:
        folders: One or more folders that hold the experiment's pictures.
        out: Folder for ``tables.{csv,tex,md}``, ``differences.csv``, ``orders.csv``, ``plots/`` and ``sheets/``. Sheets
            of an earlier report are removed, and so are its plots, unless ``plots`` is off and the numbers are equal.
        listener: Receives tables and progress.
        baseline: Name of the row that others are compared with; the first row if None.
        plots: Whether to draw plots, which needs matplotlib.
        costs: Whether to include time, evaluations and memory.
        experiment: Replaces the specification in the plan, e.g. with other metrics.

    Returns:
        The content of the report.

    Raises:
        VitrailError: If a folder is not an experiment's, a picture cannot be read, there is no such baseline, or
            plots are wanted and matplotlib is missing.
    """
    if plots:
        check_matplotlib()
    loaded = load(folders, experiment)
    baseline = baseline_of(loaded, baseline)
    seen = look(loaded, listener)
    results = gather_results(loaded, seen, listener, baseline)
    results = results if costs else evolve(results, costs=())
    tables, notes = tables_of(results), [*origin_lines(results), *_measured_by(loaded)]
    for table in _at_a_glance(results):
        listener.show(table)
    listener.say(["", *notes])
    out.mkdir(parents=True, exist_ok=True)
    _clear(out, keeps_plots=not plots and _is_of(results, out))
    for name, text in _texts(results, tables, notes):
        write_text(out / name, text)
    drawn = draw_plots(results, out / "plots") if plots else sorted((out / "plots").glob("*.png"))
    sheets = draw_sheets(results, out / "sheets")
    listener.say(
        f"{out}: {len(tables)} tables in tables.md, .tex and .csv, {len(drawn)} plots, {len(sheets)} contact sheets",
    )
    return ExperimentReport(
        results=results, loaded=loaded, seen=seen, tables=tables, plots=drawn, sheets=sheets, notes=notes
    )


def _is_of(results: Results, out: Path) -> bool:
    """Return whether the last report in a folder had the same numbers."""
    table = out / TABLE
    return table.exists() and table.read_text(encoding="utf-8") == as_csv(results)


def _clear(out: Path, keeps_plots: bool) -> None:
    """Remove the plots and sheets of an earlier report, which this one may not overwrite."""
    for stale in (*(() if keeps_plots else out.glob("plots/*.png")), *out.glob("sheets/*.webp")):
        stale.unlink()


def _texts(results: Results, tables: Sequence[Table], notes: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield TABLE, as_csv(results)
    yield "differences.csv", differences_as_csv(results)
    yield "orders.csv", orders_as_csv(results)
    yield "tables.tex", LATEX_HEAD + "\n".join(as_latex(table) for table in tables)
    head = [f"# {escaped_markdown(results.title or 'Results')}", *map(escaped_markdown, notes)]
    yield "tables.md", "\n\n".join(head) + "\n\n" + "\n".join(as_markdown(table) for table in tables)


def _at_a_glance(results: Results) -> list[Table]:
    """Return the tables for a terminal: by size, and the rankings if there are at most ``FEW`` rows."""
    few = all(len(results.at(size)) <= FEW for size in results.sizes)
    return [*by_size(results), *(in_order(results) if few else ())]


def _measured_by(loaded: Loaded) -> Iterator[str]:
    """Yield lines on the metrics with their options, the training size and the reference set."""
    metrics, reference = loaded.experiment.metrics, loaded.experiment.reference
    if metrics and loaded.done:
        yield f"metrics: {'; '.join(map(_spelt_out, metrics))}"
    sides = sorted({outcome.native_size for outcome in loaded.outcomes.values() if outcome.native_size})
    if metrics and sides:
        yield f"trained at: {', '.join(f'{side}x{side}' for side in sides)} pixels, the size of crops with crop_size 0"
    if reference is not None and any(metric.needs_reference for metric in metrics):
        yield f"true pictures: {_spelt_out(reference)}, digest {reference.digest[:DIGITS]}"


def _spelt_out(strategy: Any) -> str:
    """Return a strategy's registered name, or else its class's, with every option."""
    entries = (entry for slot in ("metrics", "features", "references") for entry in registry().entries(slot))
    names = {entry.value: entry.name for entry in entries}
    options = {field.name: getattr(strategy, field.name) for field in attrs.fields(type(strategy))}
    parts = [f"{name} {_spelt_out(value) if type(value) in names else value}" for name, value in options.items()]
    return names.get(type(strategy), type(strategy).__name__) + (f" ({', '.join(parts)})" if parts else "")


def source_line(results: Results) -> str:
    """Return the line on the table or figure of a paper that an experiment corresponds to."""
    return f"corresponds to: {results.source}"


def origin_lines(results: Results) -> Iterator[str]:
    """Yield lines on the provenance: source, command, cells, errors, machines, versions, commits, intervals."""
    if results.source:
        yield source_line(results)
    if results.command:
        yield f"made by: {results.command}"
    done, missing, failed = results.counts()
    if results.groups:
        yield f"pictures: {done} of {done + missing + failed}, {missing} missing, {failed} failed"
    yield from (f"failed: {error}" for error in results.errors)
    undone = sum(figure.file is None for figure in results.figures)
    if results.figures:
        yield f"figures: {len(results.figures) - undone} of {len(results.figures)}"
    if results.machines:
        yield "sampled on: " + "; ".join(f"{name} ({count})" for name, count in results.machines.items())
    if results.versions:
        yield "with: " + ", ".join(f"{name} {' and '.join(found)}" for name, found in results.versions.items())
    if results.commits:
        yield "sampled by Vitrail at " + "; ".join(f"{name} ({count})" for name, count in results.commits.items())
    if results.commit:
        yield f"reported by Vitrail at {results.commit}"
    if results.resamples and results.groups:
        yield f"intervals: {LEVEL:.0%}, bootstrap over pictures, {results.resamples} draws"
