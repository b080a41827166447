"""What the commands do, below the parsing of options."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vitrail.backbones.source import find_model
from vitrail.core.composition import Composition
from vitrail.core.config import Loader, override, read_file
from vitrail.core.registry import MEMBERS, Registry
from vitrail.core.run_config import RunConfig
from vitrail.discovery import registry
from vitrail.errors import ConfigError
from vitrail.methods import load_method, summary

if TYPE_CHECKING:
    from rich.console import Console

    from vitrail.sampler import Plan, Result, Sampler

DTYPES = ("float32", "bfloat16", "float16")


def run_config(given: dict[str, Any], size: str | None, file: Path | None) -> RunConfig:
    """A run from a file and flags; flags win. All problems at once."""
    table = read_file(file) if file else {}
    for name, value in (("file", table.pop("size", None)), ("--size", size)):
        if value is not None:
            table |= _sides(str(value), name)
    table |= given
    if table.get("seed") == -1:
        import secrets

        table["seed"] = secrets.randbits(32)
    if "prompt" not in table:
        raise ConfigError('no prompt; write it first, e.g. vitrail sample "a fox on a snow field"')
    return Loader(registry()).structure(table, RunConfig, str(file) if file else "vitrail sample")


def _sides(text: str, where: str) -> dict[str, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not found:
        raise ConfigError(f"{where}: size {text!r} is not a number of pixels; write 512, or 768x512 for width x height")
    return {"width": int(found[1]), "height": int(found[2] or found[1])}


def replayed(picture: Path, sets: Sequence[str]) -> tuple[RunConfig, Composition]:
    """The run and method inside a picture."""
    from vitrail.recipe import read_recipe

    recipe = read_recipe(picture)
    if recipe.method is None:
        raise ConfigError(f"{picture}: its method used a strategy that no plugin registers, so it cannot be replayed")
    loader = Loader(registry())
    method = loader.structure(override(recipe.method, list(sets)), Composition, f"method in {picture}")
    return loader.structure(recipe.run, RunConfig, f"run in {picture}"), method


def check(file: Path, sets: Sequence[str]) -> None:
    """Say that a method or run file is sound, or raise with every problem."""
    table = read_file(file)
    if "stages" in table:
        load_method(file, sets)
    else:
        config = run_config({}, None, file)
        composition = load_method(config.method, sets)
        composition.check(find_model(config.model, registry()).offers, f"model {config.model!r}")
    _console().print(f"{file}: sound")


def sample(
    run: RunConfig,
    composition: Composition,
    output: Path | None,
    force: bool,
    device: str | None,
    dtype: str,
    dry_run: bool,
) -> None:
    """Plan, sample with progress, and write the pictures with their recipes."""
    from vitrail.errors import nearest
    from vitrail.progress import Progress

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r}{nearest(dtype, DTYPES)}")
    paths = output_paths(run, output, force)
    composition.check(find_model(run.model, registry()).offers, f"model {run.model!r}")
    console = _console()
    _quiet_libraries()
    from vitrail.sampler import Sampler

    progress = Progress(console)
    sampler = Sampler.from_pretrained(
        run.model, composition, device=device, dtype=dtype, plugins=[("progress", progress)]
    )
    show_plan(console, run, sampler.plan(run))
    if dry_run:
        return
    with _stop_on_interrupt(sampler, console), progress:
        result = sampler.run(run)
    _write(console, run, result, paths)


def show_plan(console: Console, run: RunConfig, plan: Plan) -> None:
    """The stages, their cost and the size of the canvas."""
    from rich.table import Table

    table = Table("stage", "steps", "views", "strategies", box=None, header_style="bold")
    for stage in plan.stages:
        last = stage.first_step + stage.num_steps - 1
        table.add_row(str(stage.stage + 1), f"{stage.first_step}-{last}", str(stage.num_views), stage.strategies)
    console.print(
        f"{run.width}x{run.height} pixels, {plan.canvas.width}x{plan.canvas.height} latent cells, "
        f"model {run.model}, method {Path(run.method).stem}, seed {run.seed}"
    )
    console.print(table)
    console.print(f"{plan.model_calls * run.num_images} views x branches through the network")


def output_paths(run: RunConfig, output: Path | None, force: bool) -> list[Path]:
    """One path a picture, none of which exists, unless forced."""
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: only .png files are written, since they can carry the recipe")
    slug = re.sub(r"[^a-z0-9]+", "-", run.prompt.lower()).strip("-")[:48] or "picture"
    base = output or Path(f"{slug}-{run.seed}.png")
    if not base.parent.is_dir():
        raise ConfigError(f"--output {base}: the folder {base.parent} does not exist")
    many = run.num_images > 1
    paths = [base.with_stem(f"{base.stem}-{i}") if many else base for i in range(run.num_images)]
    taken = [path for path in paths if path.exists() and not force]
    if taken and output is None:
        free = next(n for n in range(2, 10**6) if not any(p.with_stem(f"{p.stem}-{n}").exists() for p in paths))
        return [path.with_stem(f"{path.stem}-{free}") for path in paths]
    if taken:
        raise ConfigError(f"--output {taken[0]} exists; give another name or --force")
    return paths


def _write(console: Console, run: RunConfig, result: Result, paths: list[Path]) -> None:
    from vitrail.recipe import save_picture

    report = result.report
    for path, image, recipe in zip(paths, result.images, result.recipes, strict=False):
        target = path.with_suffix(".partial.png") if report.interrupted else path
        save_picture(image, recipe, target)
        console.print(f"{target}  seed {recipe.run['seed']}  {image.width}x{image.height}")
    spent = report.engine_s + report.decode_s
    share = 100 * (1 - report.predict_s / max(report.engine_s, 1e-9))
    console.print(
        f"{report.steps} steps, {report.model_calls} views x branches in {spent:.1f} s "
        f"(decoding {report.decode_s:.1f} s, {share:.1f} % of the loop outside the network)"
    )
    if report.interrupted:
        console.print("stopped early: the picture shows the prediction so far", style="yellow")
        raise SystemExit(130)
    console.print(f"again: vitrail replay {paths[0]} -o again.png")


@contextmanager
def _stop_on_interrupt(sampler: Sampler, console: Console) -> Iterator[None]:
    """Ctrl-C once stops at the next step, twice at once."""

    def handle(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.print("stopping at the next step; Ctrl-C again stops at once", style="yellow")
        sampler.interrupt()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def show_methods() -> None:
    """Every method with its source, and every strategy with the first line of its docstring."""
    from rich.table import Table

    names, console = registry(), _console()
    table = Table("method", "what it is", box=None, header_style="bold")
    for entry in names.entries("methods"):
        table.add_row(entry.name, summary(names.path("methods", entry.name)).partition(": ")[2])
    console.print(table)
    strategies = Table("slot", "strategy", "what it does", "options", box=None, header_style="bold")
    for slot in MEMBERS:
        for entry in names.entries(slot):
            cls: Any = entry.value
            options = ", ".join(f.name for f in attrs.fields(cls))
            strategies.add_row(slot, entry.name, (cls.__doc__ or "").split("\n")[0], options)
    console.print()
    console.print(strategies)


def show_plugins() -> None:
    """Every plugin with what it adds, and those that failed."""
    from rich.table import Table

    names, console = registry(), _console()
    table = Table("plugin", "distribution", "adds", box=None, header_style="bold")
    for plugin, source in names.plugins.items():
        table.add_row(plugin, source, _added(names, plugin))
    for failure in names.failures:
        table.add_row(failure.plugin, failure.distribution, f"failed to load: {failure.error}")
    console.print(table)


def _added(names: Registry, plugin: str) -> str:
    slots = [*MEMBERS, "methods", "models"]
    found = {slot: [e.name for e in names.entries(slot) if e.plugin == plugin] for slot in slots}
    return "; ".join(f"{slot}: {', '.join(items)}" for slot, items in found.items() if items) or "nothing"


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 140
    return Console(width=width, highlight=False, soft_wrap=True)


def _quiet_libraries() -> None:
    """The libraries' own progress bars and advice would cover ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
