"""``vitrail sample`` and ``replay`` from a valid run to files: plan, progress, Ctrl-C, pictures."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.backbones.loading.model_errors import model_blamed
from vitrail.cli import process
from vitrail.cli.arguments import check_target, output_paths
from vitrail.cli.console import command_line, console, say
from vitrail.cli.plan_lines import compile_lines, exchange_lines, memory_lines, plan_lines, rank_lines, thread_lines
from vitrail.cli.progress import Progress
from vitrail.cli.ranks import RankOptions, RankPlacement, place, report_done, run_ranks, start_ranks
from vitrail.cli.rescue import latents_instead, latents_written
from vitrail.cli.signals import INTERRUPTED, held, stopping
from vitrail.core.config.atomic import write_text
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.log import logger
from vitrail.core.config.paths import expanded, expanded_or_none
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, OutputError, Problems, VitrailError
from vitrail.sampling.recipe import digest_of, save_picture
from vitrail.sampling.replaying import located

if TYPE_CHECKING:
    from rich.console import Console

    from vitrail.comm.communicator import RankCommunicator
    from vitrail.sampling.call_options import Callback
    from vitrail.sampling.result import Plan, Report, Result
    from vitrail.sampling.sampler import Sampler

FAILED = "cannot be sampled with"


@frozen(kw_only=True)
class RenderOptions:
    """Options of executing a run; except for plugins that wrap hooks they do not change the picture.

    Attributes:
        output: PNG file; named after prompt and seed if None.
        force: Overwrite an existing output file.
        device: A torch device; None for the default.
        dry_run: Show the plan and stop.
        ranks: Number of ranks and their communication.
        checkpoint: File to resume from and to write; None for no checkpoint.
        checkpoint_every: Steps between two writes of the checkpoint.
        trace: File for the trace of all ranks; None for no trace.
        preview: PNG file for small pictures of what is predicted meanwhile; None for none.
        preview_every: Steps between two previews.
        plugins: (name, plugin) pairs that observe or wrap the run.
    """

    output: Path | None = field(default=None, converter=expanded_or_none)
    force: bool = False
    device: str | None = None
    dry_run: bool = False
    ranks: RankOptions = field(factory=RankOptions)
    checkpoint: Path | None = field(default=None, converter=expanded_or_none)
    checkpoint_every: int = 5
    trace: Path | None = field(default=None, converter=expanded_or_none)
    preview: Path | None = field(default=None, converter=expanded_or_none)
    preview_every: int = 5
    plugins: tuple[tuple[str, object], ...] = field(converter=as_tuple, default=())


def sample(run: RunConfig, composition: Composition, options: RenderOptions, notes: Sequence[str] = ()) -> None:
    """Show the plan, sample with progress, and write the pictures with their recipes.

    Args:
        run: The run.
        composition: Its method.
        options: Options of execution.
        notes: Lines to show above the plan.

    Raises:
        VitrailError: If options are invalid, the model cannot be loaded or a picture cannot be written.
        SystemExit: 130 if interrupted; with ranks as new processes, always, with their exit code.
    """
    paths, placement = _check(run, options)
    if run.compile:
        _check_compile(run, composition, _device(options, placement))
    if placement.kind == "start" and not options.dry_run:
        written = [*paths, *filter(None, [options.checkpoint, options.trace, options.preview])]
        raise SystemExit(start_ranks(placement, [path.parent for path in written]))
    out = console(quiet=not placement.speaks)
    if not process.plans_by_loading():  # else it has been said
        say(out, f"loading model {run.model}")
    if options.dry_run:
        say(out, [*notes, *_foreseen(run, composition, options, placement)])
        return
    first, plan, lines = _loaded(run, composition, options, placement)
    say(out, [*notes, *lines])
    from vitrail.sampling.call_options import Spread

    def program(communicator: RankCommunicator) -> Result:
        spread = Spread(
            communicator=communicator,
            speeds=options.ranks.speeds,
            exchange=options.ranks.exchange,
            checkpoint=options.checkpoint,
            checkpoint_every=options.checkpoint_every,
        )
        if communicator.rank > 0:
            return first.again().run(run, None if options.preview is None else _without_preview, spread=spread)
        progress = Progress(out, bar=out.is_terminal and not _is_verbose())
        progress.expect(plan, run.num_images)
        sampler = first.again([("progress", progress)])
        with _stop_on_interrupt(sampler, out), progress, latents_written(out, paths, run):
            return sampler.run(run, _previews(options), spread=spread)

    on_cuda = first.backbone.device.type == "cuda"
    with model_blamed(run.model, FAILED):
        result = run_ranks(placement, on_cuda, program, digest_of(repr(run)))
    if placement.speaks:
        _write(out, run, plan, result, paths, options)
    report_done()


def _previews(options: RenderOptions) -> Callback | None:
    """Return the callback that writes previews on rank 0, if they are asked for."""
    from vitrail.sampling.previews import PreviewFile

    return None if options.preview is None else PreviewFile(path=options.preview, every=options.preview_every)


def _without_preview(*step: object) -> None:
    """Stand for the callback on other ranks: all must have one, since it needs the whole canvas on every rank."""


def _loaded(
    run: RunConfig, composition: Composition, options: RenderOptions, placement: RankPlacement
) -> tuple[Sampler, Plan, list[str]]:
    """Load the model; return it with the plan and the lines about it."""
    with process.starting():
        from vitrail.backbones.pipeline_backbone import quiet_libraries
        from vitrail.sampling.sampler import Sampler

        quiet_libraries()
        sampler = Sampler.of(run, composition, _device(options, placement), options.plugins)
        with model_blamed(run.model, FAILED):
            return sampler, *_planned(sampler, run, placement, options)


def _foreseen(run: RunConfig, composition: Composition, options: RenderOptions, placement: RankPlacement) -> list[str]:
    """Return the lines of the plan without loading the model; where that cannot tell them, with it."""
    if not process.plans_by_loading():
        try:
            with process.starting(), process.planning_imports():
                from vitrail.sampling.sampler import Sampler

                sampler, unloaded = Sampler.planner(run, composition, _device(options, placement), options.plugins)
                return _planned(sampler, run, placement, options, unloaded)[1]
        except Exception as error:  # a model that is loaded tells what is wrong
            if isinstance(error, VitrailError) and not _lacks_a_package(error):
                raise
            logger().info("plan.needs_weights", model=run.model, reason=repr(error))
            process.start_again()
    return _loaded(run, composition, options, placement)[2]


def _lacks_a_package(error: BaseException | None) -> bool:
    """Whether an error comes from a package that could not be imported: it may have been hidden from the plan."""
    while error is not None and not isinstance(error, ImportError):
        error = error.__cause__ or error.__context__
    return error is not None


def _planned(
    sampler: Sampler, run: RunConfig, placement: RankPlacement, options: RenderOptions, unloaded: int = 0
) -> tuple[Plan, list[str]]:
    """Return the plan, and the lines about it and this machine.

    Args:
        sampler: With its model, loaded or not.
        run: The run.
        placement: How the ranks are created.
        options: Options of execution.
        unloaded: See ``forecast``.
    """
    from vitrail.backbones.memory.forecast import forecast
    from vitrail.core.engine.compiling import check_graphs
    from vitrail.sampling.result import Plan

    run_plan = sampler.run_plan(run, run.seed)
    plan = Plan.of(run_plan, sampler.backbone)
    outlook = forecast(run_plan, sampler.backbone, placement.world_size, run.row_batch, unloaded)
    graphs = compile_lines(check_graphs(run_plan, outlook.rows)) if run.compile else ()
    machine = [*memory_lines(outlook), *graphs, *thread_lines(sampler.backbone)]
    ranks = [
        *rank_lines(placement, plan, outlook.rows),
        *exchange_lines(placement, run_plan, options.preview is not None),
    ]
    return plan, [*plan_lines(run, plan), *machine, *ranks]


def _device(options: RenderOptions, placement: RankPlacement) -> str | None:
    """Return the device asked for, or the CUDA device of a launcher's rank; None for the default device."""
    from vitrail.backbones.loading.model_loader import default_device

    if options.device is not None:
        return options.device
    if placement.environment is None or default_device() != "cuda":
        return None
    return f"cuda:{placement.environment.local_rank}"


def _check(run: RunConfig, options: RenderOptions) -> tuple[list[Path], RankPlacement]:
    """Check all options that need no model, and return the pictures' paths and the placement of the ranks."""
    problems, paths = Problems(), []
    placement = None
    with problems.collect():
        placement = place(options.ranks)
    with problems.collect():
        paths = output_paths(run, options.output, options.force)
    own = (("--checkpoint", options.checkpoint), ("--trace", options.trace), ("--preview", options.preview))
    for option, path in own:
        with problems.collect():
            if path is not None:
                check_target(path, option)
    with problems.collect():
        written = [("--output", path) for path in paths]
        written += [(name, path) for name, path in own if path is not None]
        _refuse_one_file(written)
    with problems.collect():
        if options.checkpoint_every < 1:
            raise ConfigError(f"--checkpoint-every must be 1 or more, got {options.checkpoint_every}")
    with problems.collect():
        _check_preview(run, options)
    problems.tell()
    assert placement is not None
    return paths, placement


def _check_compile(run: RunConfig, composition: Composition, device: str | None) -> None:
    """Refuse to compile what cannot be, and where torch's compiler does not work, before a model is loaded.

    Torch's compiler is imported here, and so before the imports of a plan, which would hide it.
    """
    from vitrail.backbones.compiled_code import check_compiler
    from vitrail.backbones.loading.model_loader import find_device
    from vitrail.core.engine.compiling import check_method

    check_method(composition)
    check_compiler(str(find_device(device)))


def _check_preview(run: RunConfig, options: RenderOptions) -> None:
    """Refuse previews that would be no PNG file, or would replace something else than previews.

    Raises:
        ConfigError: Naming the option.
    """
    from vitrail.sampling.previews import is_preview

    path = options.preview
    if options.preview_every < 1:
        raise ConfigError(f"--preview-every must be 1 or more, got {options.preview_every}")
    if path is None or not path.name:
        return
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--preview {path}: only .png files are written; name one")
    if run.image is not None and path.exists() and path.samefile(expanded(run.image)):
        raise ConfigError(f"--preview {path}: --image reads this file; name another")
    if path.is_file() and not options.force and not is_preview(path):
        raise ConfigError(f"--preview {path}: exists and is no preview; name another, or --force to overwrite it")


def _refuse_one_file(written: Sequence[tuple[str, Path]]) -> None:
    """Refuse two options that name one file, since the later writing would replace the earlier one's.

    Args:
        written: Pairs of an option and a path that it writes.

    Raises:
        ConfigError: Naming both options.
    """
    seen: dict[Path, str] = {}
    for option, path in written:
        place = path.parent.resolve() / path.name
        if place in seen:
            raise ConfigError(f"{option} {path}: {seen[place]} writes this file, too; name another")
        seen[place] = option


def _write(out: Console, run: RunConfig, plan: Plan, result: Result, paths: list[Path], options: RenderOptions) -> None:
    """Write finished pictures, and an interrupted one as ``NAME.partial.png``.

    Raises:
        OutputError: If one cannot be written, after writing all others; its latents are saved if possible.
    """
    steps = sum(stage.num_steps for stage in plan.stages)
    complete, rest = divmod(result.report.steps, steps)
    made = zip(paths, result.images, result.recipes, result.latents, strict=False)
    problems = Problems()
    with held():
        for number, (path, image, recipe, latents) in enumerate(made):
            with problems.collect(), latents_instead(out, latents, recipe, path, run):
                if number < complete:
                    save_picture(image, recipe, path, overwrite=options.force)
                    say(out, f"{path}: {image.width}x{image.height}, seed {recipe.run['seed']}")
                elif rest:
                    partial = path.with_suffix(".partial.png")
                    save_picture(image, recipe, partial)
                    say(out, f"{partial}: what was predicted after {rest} of {steps} steps, seed {recipe.run['seed']}")
    problems.tell()
    say(out, _summary(result.report))
    say(out, result.report.notes, style="yellow")
    _tell_ranks(out, result, options)
    if complete < run.num_images:
        if options.checkpoint is not None and options.checkpoint.exists():
            say(out, f"{options.checkpoint}: the same command goes on from here")
        kept = f"{complete} of {run.num_images} pictures complete" if complete else "no picture is complete"
        say(out, f"stopped early: {kept}", style="yellow")
        raise SystemExit(INTERRUPTED)
    if options.checkpoint is not None:
        options.checkpoint.unlink(missing_ok=True)
    say(out, f"again: {_again(paths[0], run)}")


def _tell_ranks(out: Console, result: Result, options: RenderOptions) -> None:
    """Print the summary of the ranks' traces, and write the trace if requested."""
    from vitrail.comm.trace.chrome import trace_text
    from vitrail.comm.trace.summary import lines, summarize

    if len(result.traces) > 1:
        say(out, lines(summarize(result.traces)))
    if options.trace is not None:
        try:
            write_text(options.trace, trace_text(result.traces))
        except OutputError as error:
            say(out, f"no trace: {error}", style="yellow")
            return
        say(out, f"{options.trace}: what every rank did when; for https://ui.perfetto.dev or `vitrail timeline`")


def _summary(report: Report) -> str:
    outside = 100 * (1 - report.predict_s / max(report.engine_s, 1e-9))
    return (
        f"{report.steps} steps with {report.model_calls} evaluations in {report.engine_s:.1f} s, {outside:.1f} % of it "
        f"outside the network; decoding in {report.decode_s:.1f} s"
    )


@contextmanager
def _stop_on_interrupt(sampler: Sampler, out: Console) -> Iterator[None]:
    """Stop at the next step at the first Ctrl-C or SIGTERM and keep the result; exit at the second."""

    def stop() -> None:
        sampler.interrupt()
        say(out, "stopping at the next step; Ctrl-C again stops at once, without the picture in work", style="yellow")

    try:
        with stopping(stop):
            yield
    except KeyboardInterrupt:
        sys.stderr.write("Stopped at once; the picture in work is lost.\n")
        raise SystemExit(INTERRUPTED) from None


def _again(path: Path, run: RunConfig) -> str:
    """Return the command that reproduces a picture."""
    return command_line("vitrail", "replay", str(path), *located(run))


def _is_verbose() -> bool:
    """Return whether events are logged, which excludes a bar."""
    return logging.getLogger("vitrail").isEnabledFor(logging.INFO)
