"""What the commands do, below the parsing of options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vitrail.backbones.loading.source import ModelOptions, check_scheduler, find_model
from vitrail.cli.console import console, say
from vitrail.cli.ranks import RankOptions
from vitrail.comm.communicator import TIMEOUT_S
from vitrail.core.config.files import read_file
from vitrail.core.config.loader import Loader
from vitrail.core.config.overrides import override
from vitrail.core.config.paths import expanded, expanded_or_none
from vitrail.core.config.run_config import PIXELS, RunConfig
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, Problems, nearest, shortened
from vitrail.experiments.spec.experiment_file import MARKS, load_experiment
from vitrail.sampling.discovery import installed, registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.relative_paths import of_run
from vitrail.sampling.start_picture import open_picture

if TYPE_CHECKING:
    from vitrail.sampling.recipe import Recipe

LONGEST_TIMEOUT_S = 1e6  # more than eleven days
MOST_TRACES = 64  # of one figure
FIELDS = attrs.fields_dict(RunConfig)


def prepare(
    given: dict[str, Any],
    size: str | None = None,
    file: Path | None = None,
    sets: Sequence[str] = (),
    command: str = "vitrail sample",
) -> tuple[RunConfig, Composition]:
    """A run and its method from a file and flags; flags win.

    Raises:
        VitrailError: Naming every problem of the run, its method, its model and its scheduler.
    """
    problems = Problems()
    file = expanded_or_none(file)
    table = of_run(read_file(file), file.parent) if file else {}
    with problems.collect():
        table = _with_sides(table, table.pop("size", None), f"{file}: size")
    with problems.collect():
        given = _with_sides(given, size, "--size")
    table = table | given
    if table.get("seed") == -1:
        import secrets

        table["seed"] = secrets.randbits(32)
    if "prompt" not in table:
        with problems.collect():
            raise ConfigError(f'{file or command}: no prompt; write one, e.g. "a fox on a snow field"')
    run = composition = None
    with problems.collect():
        run = _structure(table, given, str(file or command))
    method, model, scheduler = (table.get(name, FIELDS[name].default) for name in ("method", "model", "scheduler"))
    with problems.collect():
        composition = load_method(method, sets) if isinstance(method, str) else None
    if composition is not None:
        with problems.collect():
            composition.check_files()
    with problems.collect():
        options = None if run is None else ModelOptions.of(run)
        spec = find_model(model, registry(), options) if isinstance(model, str) else None
        if spec and run:
            run = _structure({**spec.suits, **table}, given, str(file or command))
        if spec and composition:
            composition.check(spec.offers, f"model {model!r}", registry())
    with problems.collect():
        if run is not None and run.image is not None:
            open_picture(run.image, quiet=True)
    with problems.collect():
        check_scheduler(scheduler if isinstance(scheduler, str) else None)
    problems.tell()
    assert run is not None
    assert composition is not None
    return run, composition


def _structure(table: dict[str, Any], given: dict[str, Any], where: str) -> RunConfig:
    """The run of a table; problems of flags are told in the words of the command line."""
    try:
        return Loader(registry()).structure({"prompt": ""} | table, RunConfig, where)
    except ConfigError as error:
        text = str(error)
        for name in given:
            text = text.replace(f"\n  $.{name}: ", f"\n  --{name.replace('_', '-')}: ")
        raise ConfigError(text) from error


def _with_sides(table: dict[str, Any], size: object, where: str) -> dict[str, Any]:
    """A table with ``size`` taken apart into width and height."""
    if size is None:
        return table
    shown = shortened(str(size), 60)
    found = PIXELS.fullmatch(shown.strip().lower())
    if not found:
        raise ConfigError(f"{where}: {shown!r} is no number of pixels; write 512, or 768x512 for width x height")
    if table.keys() & {"width", "height"}:
        raise ConfigError(f"{where}: give either the size or width and height, not both")
    return table | {"width": int(found[1]), "height": int(found[2] or found[1])}


def replayed(picture: Path, sets: Sequence[str], changes: dict[str, Any]) -> tuple[RunConfig, Composition, Recipe]:
    """The run and method inside a picture, some fields of the run replaced: where its model is, for one."""
    from vitrail.sampling.recipe import read_recipe
    from vitrail.sampling.replaying import check_files, check_image, relocated

    picture = expanded(picture)
    recipe = read_recipe(picture)
    if recipe.method is None:
        raise ConfigError(f"{picture}: its method used a strategy that no plugin registers, so it cannot be replayed")
    lost = [name for name in recipe.given if name != "image" or recipe.run.get("image") is None]
    if lost:
        raise ConfigError(f"{picture}: made with {', '.join(lost)}, which a recipe cannot carry; make it in Python")
    loader, problems = Loader(registry()), Problems()
    run = composition = None
    with problems.collect():
        tables = override(recipe.method, sets)
        composition = loader.structure(tables, Composition, f"method in {picture}")
        check_files(recipe, composition, str(picture))
    with problems.collect():
        run = loader.structure(relocated(recipe, changes), RunConfig, f"run in {picture}")
        for name, value in (("model", run.model), ("image", run.image)):
            if value is not None and name not in changes:
                _check_own(picture, name, value)
        check_image(recipe, run, str(picture))
        spec = find_model(run.model, registry(), ModelOptions.of(run))
        if composition is not None:
            composition.check(spec.offers, f"model {run.model!r}", registry())
    problems.tell()
    assert run is not None
    assert composition is not None
    return run, composition, recipe


def _check_own(picture: Path, kind: str, value: str) -> None:
    """Refuse what a recipe names elsewhere: what is written in a picture, a stranger may have chosen.

    Our own recipes name registered models, and files and folders without their place.

    Raises:
        ConfigError: Naming the option that says it is wanted.
    """
    if value in registry().names("models"):
        return
    told = f"{picture}: made with the {kind} {value!r}"
    if Path(value).name != value:
        raise ConfigError(f"{told}; a picture does not choose what is read or fetched: give --{kind} if you trust it")
    if not expanded(value).exists():
        raise ConfigError(f"{told}, which is not here; give its --{kind}")


def check(file: Path, sets: Sequence[str]) -> None:
    """Say that the file of a method, a run or an experiment is sound, or raise with every problem."""
    file = expanded(file)
    table = read_file(file)
    if table.keys() & set(MARKS):
        say(console(), f"{file}: sound, {_check_experiment(file, sets)}")
        return
    if "stages" in table:
        composition = load_method(file, sets)
        composition.check_files()
        count = len(composition.stages)
        what = f"a method of {count} stage{'s' if count > 1 else ''}"
    elif table.keys() & {*FIELDS, "size"}:
        run, composition = prepare({}, None, file, sets)
        what = f"a run of {run.width}x{run.height} pixels with method {run.method} and model {run.model}"
    else:
        hints = "; ".join(
            f"it has {str(key)!r}{nearest(str(key), ('stages', *FIELDS)).partition(';')[0]}" for key in table
        )
        raise ConfigError(
            f"{file}: is no method, which has 'stages', no run, which has a 'prompt', and no "
            f"experiment, which has 'methods'; {hints}"
        )
    composition.attention_request()
    say(console(), f"{file}: sound, {what}")


def _check_experiment(file: Path, sets: Sequence[str]) -> str:
    """What an experiment's file says, once its methods and its model are found to fit."""
    from vitrail.cli.run import check

    experiment, _ = load_experiment(file, sets)
    check(experiment, file.parent)
    rows = f"{len(experiment.methods)} methods, {len(experiment.axes)} axes and {len(experiment.sizes)} sizes"
    return f"an experiment of {rows} on model {experiment.model}"


def show_methods() -> None:
    """Every method and strategy."""
    from vitrail.cli.listing import method_lines

    out = console()
    say(out, method_lines(registry(), out.width))


def show_plugins() -> None:
    """Every plugin."""
    from vitrail.cli.listing import plugin_lines

    out = console()
    say(out, plugin_lines(installed(), out.width))


def rank_options(
    ranks: int | None = None, comm: str | None = None, timeout: float = TIMEOUT_S, speeds: str | None = None
) -> RankOptions:
    """What the command line says about ranks, read."""
    shown = shortened(speeds or "")
    try:
        each = [float(part) for part in speeds.split(",")] if speeds else []
    except ValueError as error:
        raise ConfigError(f"--speeds {shown!r}: write a number for each rank, e.g. 1,1,0.5") from error
    if any(not 0 < speed < float("inf") for speed in each):
        raise ConfigError(f"--speeds {shown!r}: speeds are positive numbers")
    if not 0 < timeout <= LONGEST_TIMEOUT_S:
        raise ConfigError(f"--timeout must be more than 0 seconds and at most {LONGEST_TIMEOUT_S:g}, got {timeout:g}")
    return RankOptions(ranks=ranks, comm=comm, timeout=timeout, speeds=each)


def draw_timeline(traces: Sequence[Path], labels: Sequence[str], output: Path) -> None:
    """Traces as one picture."""
    from vitrail.cli.timeline import draw

    if labels and len(labels) != len(traces):
        raise ConfigError(f"--label: {len(labels)} labels for {len(traces)} traces; give one for each, or none")
    if len(traces) > MOST_TRACES:
        raise ConfigError(f"{len(traces)} traces are more than {MOST_TRACES}, the most of one figure")
    traces, output = [expanded(path) for path in traces], expanded(output)
    draw(traces, labels or [path.stem for path in traces], output)
    say(console(), f"{output}: {len(traces)} trace{'s' * (len(traces) > 1)}")
