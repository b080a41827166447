"""``vitrail sample`` and ``replay`` from a sound run to files: plan, progress, Ctrl-C, pictures."""

from __future__ import annotations

import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.composition import Composition
from vitrail.core.run_config import RunConfig
from vitrail.discovery import registry
from vitrail.errors import ConfigError, Problems, nearest
from vitrail.terminal import console, say

if TYPE_CHECKING:
    from rich.console import Console

    from vitrail.result import Plan, Report, Result
    from vitrail.sampler import Sampler

DTYPES = ("float32", "bfloat16", "float16")


def sample(
    run: RunConfig,
    composition: Composition,
    *,
    output: Path | None,
    force: bool,
    device: str | None,
    dtype: str,
    dry_run: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Plan, sample with progress, and write the pictures with their recipes."""
    from vitrail.progress import Progress

    paths, out = _check_output(run, output, force, dtype), console()
    say(out, f"loading model {run.model}")
    from vitrail.backbones.stable_diffusion import quiet_libraries
    from vitrail.sampler import Sampler

    quiet_libraries()

    progress = Progress(out, bar=out.is_terminal and not _is_verbose())
    plugins = [("progress", progress)]
    sampler = Sampler.from_pretrained(run.model, composition, device=device, dtype=dtype, plugins=plugins)
    plan = sampler.plan(run)
    say(out, [*notes, *plan_lines(run, plan)])
    if dry_run:
        return
    progress.expect(plan, run.num_images)
    with _stop_on_interrupt(sampler, out):
        with progress:
            result = sampler.run(run)
        _write(out, run, plan, result, paths)


def _check_output(run: RunConfig, output: Path | None, force: bool, dtype: str) -> list[Path]:
    """One path a picture, none of which exists, unless forced; problems of dtype and path at once."""
    problems, paths = Problems(), []
    with problems.collect():
        if dtype not in DTYPES:
            raise ConfigError(f"--dtype: no number format named {dtype!r}{nearest(dtype, DTYPES)}")
    with problems.collect():
        paths = output_paths(run, output, force)
    problems.tell()
    return paths


def output_paths(run: RunConfig, output: Path | None, force: bool) -> list[Path]:
    """One path a picture, none of which exists, unless forced."""
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: only .png files are written, since they can carry the recipe")
    slug = re.sub(r"[^a-z0-9]+", "-", run.prompt.lower()).strip("-")[:48] or "picture"
    base = output or Path(f"{slug}-{run.seed}.png")
    if not base.parent.is_dir():
        raise ConfigError(f"--output {base}: the folder {base.parent} does not exist")
    if not os.access(base.parent, os.W_OK):
        raise ConfigError(f"--output {base}: the folder {base.parent} cannot be written to")
    many = run.num_images > 1
    paths = [base.with_stem(f"{base.stem}-{i}") if many else base for i in range(run.num_images)]
    taken = [path for path in paths if path.exists() and not force]
    if taken and output is None:
        free = next(n for n in range(2, 10**6) if not any(p.with_stem(f"{p.stem}-{n}").exists() for p in paths))
        return [path.with_stem(f"{path.stem}-{free}") for path in paths]
    if taken:
        raise ConfigError(f"--output {taken[0]}: exists; give another name, or --force to overwrite it")
    return paths


def plan_lines(run: RunConfig, plan: Plan) -> Iterator[str]:
    """Size, stages and cost."""
    yield (
        f"{run.width}x{run.height} pixels, {plan.canvas.width}x{plan.canvas.height} latent cells, "
        f"model {run.model}, method {Path(run.method).stem}, seed {run.seed}"
    )
    for stage in plan.stages:
        steps = f"steps {stage.first_step + 1} to {stage.first_step + stage.num_steps}"
        yield f"  stage {stage.stage + 1}: {steps}, {stage.num_views} views a step, {stage.strategies}"
    pictures = f" for {run.num_images} pictures" if run.num_images > 1 else ""
    yield f"  {plan.model_calls * run.num_images} evaluations of the network{pictures}"


def _write(out: Console, run: RunConfig, plan: Plan, result: Result, paths: list[Path]) -> None:
    """Complete pictures under their names, one that was stopped in between as ``NAME.partial.png``."""
    from vitrail.recipe import save_picture

    steps = sum(stage.num_steps for stage in plan.stages)
    complete, rest = divmod(result.report.steps, steps)
    for number, (path, image, recipe) in enumerate(zip(paths, result.images, result.recipes, strict=False)):
        if number < complete:
            save_picture(image, recipe, path)
            say(out, f"{path}: {image.width}x{image.height}, seed {recipe.run['seed']}")
        elif rest:
            partial = path.with_suffix(".partial.png")
            save_picture(image, recipe, partial)
            say(out, f"{partial}: what was predicted after {rest} of {steps} steps, seed {recipe.run['seed']}")
    say(out, _summary(result.report))
    if complete < run.num_images:
        kept = f"{complete} of {run.num_images} pictures complete" if complete else "no picture is complete"
        say(out, f"stopped early: {kept}", style="yellow")
        raise SystemExit(130)
    say(out, f"again: {_again(paths[0], run.model)}")


def _summary(report: Report) -> str:
    outside = 100 * (1 - report.predict_s / max(report.engine_s, 1e-9))
    return (
        f"{report.steps} steps with {report.model_calls} evaluations in {report.engine_s:.1f} s, {outside:.1f} % of it "
        f"outside the network; decoding in {report.decode_s:.1f} s"
    )


@contextmanager
def _stop_on_interrupt(sampler: Sampler, out: Console) -> Iterator[None]:
    """Ctrl-C once stops at the next step and keeps what is there, twice stops at once."""

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sampler.interrupt()
        say(out, "stopping at the next step; Ctrl-C again stops at once and keeps nothing", style="yellow")

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write("Stopped at once; the picture in work is lost.\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)


def _again(path: Path, model: str) -> str:
    """The command that makes a picture again."""
    named = "" if model in registry().names("models") else f" --model {shlex.quote(model)}"
    return f"vitrail replay {shlex.quote(str(path))}{named}"


def _is_verbose() -> bool:
    """Whether events are logged, which leaves no room for a bar."""
    return logging.getLogger("vitrail").isEnabledFor(logging.INFO)
