"""``vitrail report``: merge folders, compute metrics, write tables, plots and the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vitrail.cli.console import console, say
from vitrail.cli.listener import ConsoleListener
from vitrail.cli.options import configure_logging
from vitrail.cli.signals import INTERRUPTED, raising
from vitrail.core.config.overrides import override
from vitrail.core.config.paths import expanded, expanded_or_none
from vitrail.errors import ConfigError
from vitrail.experiments.analysis.feature_cache import bring
from vitrail.experiments.report.page import write_page
from vitrail.experiments.report.page_content import page_of
from vitrail.experiments.report.tables_and_plots import write_report
from vitrail.experiments.run.store import PLAN, Folder, merge
from vitrail.experiments.spec.experiment import Experiment
from vitrail.experiments.spec.experiment_file import structure

PAGE = "report.html"
OF_REPORT = ("metrics", "reference", "resamples", "source", "title")


Measured = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override what is measured, e.g. resamples=0 or metrics=['seams']. Repeatable."),
]


def report(
    folders: Annotated[list[Path], typer.Argument(help="An experiment's folder, or several to be merged into --out.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to merge into; the folder itself.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The row that others are compared with; the first.")] = None,
    sets: Measured = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw plots, which needs matplotlib.")] = True,
    costs: Annotated[bool, typer.Option("--costs/--no-costs", help="Tell of time, evaluations and memory.")] = True,
) -> None:
    """Measure an experiment and write its tables and page."""
    configure_logging(verbose=False)
    report_on(folders, out, baseline=baseline, sets=sets or (), plots=plots, costs=costs)


def report_on(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    baseline: str | None = None,
    sets: Sequence[str] = (),
    plots: bool = True,
    costs: bool = True,
) -> None:
    """Write the report of an experiment into its folder.

    Args:
        folders: Folders of the experiment; several are merged.
        out: Folder to merge into; the folder itself if None, which needs a single one.
        baseline: Name of the row that others are compared with; the first row if None.
        sets: Overrides of the metrics and other fields in ``OF_REPORT``, e.g. ``resamples=0``.
        plots: Whether to draw plots.
        costs: Whether to include time, evaluations and memory.

    Raises:
        VitrailError: If a folder is not an experiment's or of another one, or a metric cannot be computed.
        SystemExit: 130 if interrupted.
    """
    folders, out = [expanded(folder) for folder in folders], expanded_or_none(out)
    if out is None and len(folders) > 1:
        raise ConfigError("several folders are merged into one; say which by --out")
    home = folders[0] if out is None else _merged(folders, out)
    experiment = None
    if sets:
        experiment = _measured(Folder(home), sets)
    with stopping():
        out_console = console()
        listener = ConsoleListener(out_console)
        asked: Any = {"baseline": baseline, "plots": plots, "costs": costs}
        written = write_report([home], home, listener, **asked, experiment=experiment)
        page = write_page(page_of(written, home), home / PAGE)
    say(out_console, f"{page}: open it in a browser, it needs no server")


def _merged(folders: Sequence[Path], out: Path) -> Path:
    """Merge several folders into one, including cached features."""
    home = merge(folders, out).path
    for folder in folders:
        bring(folder, home)
    return home


def _measured(folder: Folder, sets: Sequence[str]) -> Experiment:
    """Return the experiment of a folder with overrides of the fields in ``OF_REPORT``.

    Raises:
        ConfigError: If an override is of another field, which cannot be changed after sampling.
    """
    where, planned = f"{folder.path / PLAN} and --set", folder.plan().experiment
    changed = override(planned, sets)
    sampled = sorted(name for name in changed if name not in OF_REPORT and changed[name] != planned.get(name))
    if sampled:
        raise ConfigError(f"--set {sampled[0]}: is sampled already; of a report there are {', '.join(OF_REPORT)}")
    return structure(changed, where)


@contextmanager
def stopping() -> Iterator[None]:
    """End a report at the first Ctrl-C or SIGTERM; extracted features stay cached.

    Raises:
        SystemExit: 130 if interrupted.
    """
    try:
        with raising():
            yield
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; pictures that were looked at are kept, the same command goes on from there.\n")
        raise SystemExit(INTERRUPTED) from None
