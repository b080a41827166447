"""``vitrail run``: sample the missing cells of an experiment."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer
from attrs import field, frozen

from vitrail.backbones.loading.source import ModelOptions, check_scheduler, find_model
from vitrail.cli.console import command_line, console, say
from vitrail.cli.meter import Meter
from vitrail.cli.options import Device, Plugin, Verbose, configure_logging
from vitrail.cli.signals import INTERRUPTED, stopping
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.loader import loader_of
from vitrail.core.config.paths import expanded
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError, Problems, nearest
from vitrail.experiments.report.plots import check_matplotlib
from vitrail.experiments.report.tables import size_text
from vitrail.experiments.run.cell_run import Worker
from vitrail.experiments.run.execution import Executor, Here, Shard
from vitrail.experiments.run.store import ExperimentPlan, Folder, refusing_full
from vitrail.experiments.spec.cells import Cell, Row, cells_of, heat_row, pairs_of, refuse_many, rows_of
from vitrail.experiments.spec.experiment import Experiment
from vitrail.experiments.spec.experiment_file import load_experiment, structure
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.mask_recorder import read_shares
from vitrail.sampling.run_plugins import load_plugins

if TYPE_CHECKING:
    from rich.console import Console

ExecutorName = Literal["here", "ray"]


Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the file, e.g. sizes.0.pictures=8. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The experiment's folder; runs/NAME if not given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]


def run(
    file: Annotated[Path, typer.Argument(help="An experiment as TOML or YAML.")],
    sets: Sets = None,
    out: Out = None,
    shard: Annotated[str, typer.Option(help="i/n: this process's share of the cells, from 0/n on.")] = "0/1",
    executor: Annotated[str, typer.Option(help="Who samples: here, or ray for the actors of a Ray cluster.")] = "here",
    workers: Annotated[int, typer.Option(min=0, help="Actors of the cluster; 0 for as many as it has room for.")] = 0,
    device: Device = None,
    dry_run: DryRun = False,
    plugin: Plugin = None,
    verbose: Verbose = False,
) -> None:
    """Sample what is missing of an experiment."""
    options = RunOptions(
        out=out or Path("runs") / file.stem,
        sets=sets or (),
        shard=Shard.read(shard),
        executor=executor_name(executor),
        workers=workers,
        device=device,
        dry_run=dry_run,
        plugins=plugin or (),
    )
    configure_logging(verbose)
    run_file(file, options)


@frozen(kw_only=True)
class RunOptions:
    """Options of executing an experiment; except for ``sets`` and plugins that wrap hooks they do not change pictures.

    Attributes:
        out: The experiment's folder.
        sets: Overrides of the experiment's file.
        shard: This process's share of the cells.
        executor: "here" for this process, "ray" for a Ray cluster.
        workers: Number of actors of a Ray cluster; 0 is derived from its resources.
        device: A torch device; None for the default.
        dry_run: Show the plan and stop.
        plugins: Plugins attached besides those of the file, ``MODULE:OBJECT`` each.
    """

    out: Path = field(converter=expanded)
    sets: tuple[str, ...] = field(default=(), converter=as_tuple)
    shard: Shard = field(factory=Shard)
    executor: ExecutorName = "here"
    workers: int = 0
    device: str | None = None
    dry_run: bool = False
    plugins: tuple[str, ...] = field(default=(), converter=as_tuple)


def executor_name(name: str) -> ExecutorName:
    """Check the name of an executor.

    Raises:
        ConfigError: If it is unknown.
    """
    known = get_args(ExecutorName)
    if name not in known:
        raise ConfigError(f"--executor {name!r}{nearest(name, known)}")
    return cast(ExecutorName, name)


def run_file(file: Path, options: RunOptions) -> None:
    """Sample the missing cells of an experiment's file.

    Raises:
        VitrailError: Before anything is sampled, naming every problem.
        SystemExit: 130 if interrupted, 1 if cells have failed.
    """
    file = expanded(file)
    experiment, table = load_experiment(file, options.sets)
    if options.plugins:
        table = {**table, "plugins": [*experiment.plugins, *options.plugins]}
        experiment = structure(table, str(file))
    run_experiment(experiment, table, file.parent, options, console())


def run_experiment(
    experiment: Experiment, table: dict[str, Any], beside: Path, options: RunOptions, out: Console
) -> None:
    """Sample the missing cells of an experiment.

    Args:
        experiment: The experiment.
        table: Its tables, to store in the plan.
        beside: Folder of its file, for a file of prompts.
        options: Options of execution.
        out: Console for plan and progress.

    Raises:
        VitrailError: Before anything is sampled, naming every problem.
        SystemExit: 130 if interrupted, 1 if cells have failed.
    """
    first = check(experiment, beside)
    if options.executor == "ray":
        _check_ray(experiment)
    elif options.workers:
        raise ConfigError("--workers is of a Ray cluster; give --executor ray, or leave it out")
    folder = Folder(options.out)
    if not options.dry_run:
        folder.make()
    say(out, f"loading model {experiment.model}")
    worker = Worker.load(first, options.device)
    cells = cells_of(experiment, worker.model(), beside)
    work = _work(worker, cells)
    outcomes = folder.outcomes()
    once = {cell.address: cell for cell in cells}.values()
    todo = [cell for cell in once if options.shard.has(cell) and not folder.is_done(cell, outcomes)]
    say(out, plan_lines(experiment, cells, todo, work, options))
    if options.dry_run:
        return
    folder.write_plan(ExperimentPlan(experiment=table, cells=cells, command=_command(sys.argv)))
    _sample(worker, folder, todo, work, options, out)


def check(experiment: Experiment, beside: Path) -> RunConfig:
    """Validate everything in an experiment that needs no weights, and return a run that names its model.

    Args:
        experiment: The experiment.
        beside: Folder of its file, for a file of prompts.

    Raises:
        VitrailError: Naming every invalid method, override, option, model, scheduler, picture and file of prompts.
    """
    problems, first, offers = Problems(), None, None
    images: list[str | None] = []
    rows: list[Row] = []
    pairs: list[tuple[str, int]] = []
    with problems.collect():
        first = _run_of(experiment, {}, "the experiment's run")
        offers = find_model(first.model, registry(), ModelOptions.of(first)).offers
    with problems.collect():
        pairs += pairs_of(experiment, beside)
    with problems.collect():
        registry().get("comm", experiment.comm)
    with problems.collect():
        load_plugins(experiment.plugins)
    with problems.collect():
        rows += rows_of(experiment)
    with problems.collect():
        refuse_many(experiment, pairs, rows)
    for heat in experiment.heatmaps:
        with problems.collect():
            check_matplotlib()
            read_shares(heat.at, f"heat map {heat.label or heat.masking!r}: at =")
            rows.append(heat_row(heat))
    for row in rows if first is not None else ():
        with problems.collect():
            images.append(_run_of(experiment, row.run, f"row {row.name!r}").image)
            row.composition.check_files(registered_name)
            row.composition.attention_request()
            if offers is not None:
                row.composition.check(offers, f"model {experiment.model!r}", registry())
    for image in dict.fromkeys(images):  # each once, as reading takes time
        with problems.collect():
            if image is not None:
                open_picture(image, quiet=True)
    problems.tell()
    assert first is not None
    return first


def _run_of(experiment: Experiment, own: Mapping[str, Any], where: str) -> RunConfig:
    table = {"prompt": "", **experiment.run, **own, "model": experiment.model}
    run = loader_of(registry()).structure(table, RunConfig, where)
    check_scheduler(run.scheduler, run.scheduler_step)
    return run


def _check_ray(experiment: Experiment) -> None:
    from vitrail.experiments.run.ray_executor import import_ray

    import_ray()
    if experiment.ranks != (1,):
        raise ConfigError("--executor ray samples every cell on one actor; for several ranks use --executor here")


def _work(worker: Worker, cells: Sequence[Cell]) -> dict[str, float]:
    """Estimate the work of each cell by address, once per row and size, and report all that do not fit the model."""
    problems, known = Problems(), {}
    for cell in cells:
        kind = (cell.row, cell.size)
        if kind not in known:
            known[kind] = 1.0
            with problems.collect():
                known[kind] = worker.work(cell)
    problems.tell()
    return {cell.address: known[cell.row, cell.size] for cell in cells}


def plan_lines(
    experiment: Experiment, cells: Sequence[Cell], todo: Sequence[Cell], work: dict[str, float], options: RunOptions
) -> Iterator[str]:
    """Yield the lines on rows, sizes, finished cells and remaining work.

    Args:
        experiment: The experiment.
        cells: All of its cells.
        todo: The cells to sample in this process.
        work: Evaluations at the training size of each cell, by address.
        options: Options of execution.
    """
    rows, pairs = list(dict.fromkeys(c.row for c in cells)), {(c.size, c.pair) for c in cells}
    sizes = [(size, sum(each == size for each, _ in pairs)) for size in dict.fromkeys(c.size for c in cells)]
    counts = [f"{size_text(size)} ({count} picture{'s' * (count > 1)})" for size, count in sizes]
    if experiment.title:
        yield experiment.title
    yield (
        f"{len(cells)} cells: {len(rows)} row{'s' * (len(rows) > 1)}, sizes {', '.join(counts)}, model "
        f"{experiment.model}"
    )
    of = f" of shard {options.shard.number}/{options.shard.count}" if options.shard.count > 1 else ""
    mine = len({cell.address for cell in cells if options.shard.has(cell)})
    yield (
        f"{options.out}: {mine - len(todo)} of {mine} cells{of} are done; the rest takes about "
        f"{sum(work[cell.address] for cell in todo):.0f} evaluations at the training size"
    )


def _sample(
    worker: Worker, folder: Folder, todo: Sequence[Cell], work: dict[str, float], options: RunOptions, out: Console
) -> None:
    failed, done = 0, 0
    meter = Meter(out, "cell", len(todo), sum(work[cell.address] for cell in todo))

    def share(cell: Cell, part: float) -> None:
        meter.part(part * work[cell.address])

    executor = _executor(worker, options)
    with refusing_full(folder.path), stop_on_interrupt(worker.interrupt, out) as stopped, meter:
        for cell, outcome in executor.outcomes(todo, folder.path, share):
            folder.append(outcome, str(options.shard))
            done, failed = done + 1, failed + (outcome.error is not None)
            failures, name = f", {failed} failed" if failed else "", f"{cell.row}, {size_text(cell.size)}"
            meter.step(f"{failures}: {name}", work[cell.address])
            if outcome.error is not None:
                say(out, f"failed: {name}, seed {cell.run['seed']}: {outcome.error}")
            if stopped():
                break
    if stopped():
        say(out, f"stopped: {done} of {len(todo)} cells are done; the same command goes on from here", style="yellow")
        raise SystemExit(130)
    if failed:
        say(out, f"{failed} cell{'s' * (failed > 1)} failed; the same command tries again", style="yellow")
    say(out, f"report: {command_line('vitrail', 'report', str(folder.path))}")
    if failed:
        raise SystemExit(1)


def _command(words: Sequence[str]) -> str:
    """Return the command line without ``--shard``, for the plan; empty if Vitrail was called from Python."""
    if not Path(words[0]).stem.endswith("vitrail"):
        return ""
    kept = list(words[1:])
    if "--shard" in kept:
        at = kept.index("--shard")
        del kept[at : at + 2]
    return shlex.join(["vitrail", *(word for word in kept if not word.startswith("--shard="))])


def _executor(worker: Worker, options: RunOptions) -> Executor:
    if options.executor == "ray":
        from vitrail.experiments.run.ray_executor import OnRay

        return OnRay(workers=options.workers, device=options.device)
    return Here(worker)


@contextmanager
def stop_on_interrupt(stop: Callable[[], bool], out: Console) -> Iterator[Callable[[], bool]]:
    """Stop after the running cell at the first Ctrl-C or SIGTERM, end the process at the second.

    Args:
        stop: Asks the running cell to stop at its next step, and returns whether it will; else it runs to its end.
        out: Console for messages.

    Yields:
        A function that returns whether a signal has arrived.

    Raises:
        SystemExit: 130 at the second signal.
    """
    stopped = False

    def end() -> None:
        nonlocal stopped
        stopped = True
        when = "at the next step; what is half done is dropped" if stop() else "once the cell in work is done"
        say(out, f"stopping {when}, Ctrl-C again stops at once", style="yellow")

    try:
        with stopping(end):
            yield lambda: stopped
    except KeyboardInterrupt:
        sys.stderr.write("Stopped at once; the cell in work is lost.\n")
        raise SystemExit(INTERRUPTED) from None
