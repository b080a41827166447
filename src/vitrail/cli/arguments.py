"""Conversion of command-line arguments shared by several commands: run, method, options of ranks, output paths."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

import attrs

from vitrail.backbones.loading.source import ModelOptions, check_scheduler, find_model
from vitrail.cli.ranks import RankOptions
from vitrail.comm.communicator import TIMEOUT_S
from vitrail.core.config.files import read_file
from vitrail.core.config.loader import loader_of
from vitrail.core.config.paths import expanded_or_none
from vitrail.core.config.run_config import PIXELS, RunConfig
from vitrail.core.engine.exchange import MEASURED, TOO_EARLY, ExchangeKind
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, Problems, shortened
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.region_masks import open_masks
from vitrail.sampling.relative_paths import of_run

LONGEST_TIMEOUT_S = 1e6  # more than eleven days
FIELDS = attrs.fields_dict(RunConfig)


def prepare(
    given: dict[str, Any],
    size: str | None = None,
    file: Path | None = None,
    sets: Sequence[str] = (),
    command: str = "vitrail sample",
) -> tuple[RunConfig, Composition]:
    """Build a run and its method from a file and flags; flags take precedence.

    Args:
        given: Fields of the run from flags; a seed of -1 draws one.
        size: Pixels as on the command line, "512" or "768x512" (width x height); None if not given.
        file: TOML or YAML file of a run; None if not given.
        sets: Overrides of the method, e.g. ``stages.0.masking=none``.
        command: Name of the command in error messages.

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
            composition.check_files(registered_name)
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
        open_masks(() if run is None else run.regions)
    with problems.collect():
        check_scheduler(scheduler if isinstance(scheduler, str) else None, None if run is None else run.scheduler_step)
    problems.tell()
    assert run is not None
    assert composition is not None
    return run, composition


def _structure(table: dict[str, Any], given: dict[str, Any], where: str) -> RunConfig:
    """Build the run of a table; error messages name flags as on the command line."""
    try:
        return loader_of(registry()).structure({"prompt": ""} | table, RunConfig, where)
    except ConfigError as error:
        text = str(error)
        for name in given:
            text = text.replace(f"\n  $.{name}: ", f"\n  --{name.replace('_', '-')}: ")
        raise ConfigError(text) from error


def _with_sides(table: dict[str, Any], size: object, where: str) -> dict[str, Any]:
    """Return the table with ``size`` parsed into ``width`` and ``height``."""
    if size is None:
        return table
    shown = shortened(str(size), 60)
    found = PIXELS.fullmatch(shown.strip().lower())
    if not found:
        raise ConfigError(f"{where}: {shown!r} is no number of pixels; write 512, or 768x512 for width x height")
    if table.keys() & {"width", "height"}:
        raise ConfigError(f"{where}: give either the size or width and height, not both")
    return table | {"width": int(found[1]), "height": int(found[2] or found[1])}


def numbers(option: str, assignments: Sequence[str]) -> dict[str, float]:
    """Parse assignments such as ``s_churn=0.5``.

    Args:
        option: Name of the command-line option in error messages.
        assignments: Texts with a name, an equals sign and a number.

    Raises:
        ConfigError: If one is none.
    """
    found = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        try:
            found[name.strip()] = float(text)
        except ValueError as error:
            shown = shortened(assignment, 60)
            raise ConfigError(f"{option} {shown!r}: write NAME=NUMBER, e.g. s_churn=0.5") from error
    return found


def parse_region(text: str) -> dict[str, Any]:
    """Parse a region of the command line, "left,top,right,bottom: prompt" with sides as shares of the picture.

    Raises:
        ConfigError: If it is of another form.
    """
    box, sign, prompt = text.partition(":")
    try:
        sides = [float(part) for part in box.split(",")]
    except ValueError:
        sides = []
    if not sign or len(sides) != 4:
        raise ConfigError(
            f'--region {shortened(text)!r}: write "left,top,right,bottom: prompt" with shares of the picture, e.g. '
            '"0,0,0.5,1: a red fox"; masks, weights and feathers go into a file for --config'
        )
    return {"box": sides, "prompt": prompt.strip()}


def parse_region_masks(texts: Sequence[str], regions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a recipe's regions with the paths of their masks here.

    Args:
        texts: "NUMBER=PATH" each, as on the command line.
        regions: Regions of the recipe.

    Raises:
        ConfigError: If one is of another form, or there is no such region with a mask.
    """
    if not texts:
        return list(regions)  # of whatever form: it is checked with the rest of the run
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise ConfigError("--region-mask: the regions of the recipe are no list of tables")
    found = [dict(region) for region in regions]
    known = [str(number) for number, region in enumerate(found) if region.get("mask") is not None]
    for text in texts:
        number, sign, path = text.partition("=")
        if not sign or number.strip() not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"--region-mask {shortened(text)!r}: write NUMBER=PATH; regions with a mask are {listed}")
        found[int(number)]["mask"] = path
    return found


def rank_options(
    ranks: int | None = None,
    comm: str | None = None,
    timeout: float = TIMEOUT_S,
    speeds: str | None = None,
    exchange: str = "barrier",
) -> RankOptions:
    """Parse and check the options of ranks.

    Args:
        ranks: Number of ranks; None for the launcher's, or one.
        comm: Name of the communication backend; None for the default.
        timeout: Seconds that a rank waits for another.
        speeds: Relative speeds of the ranks, separated by commas, or "auto" to measure them.
        exchange: What ranks wait for at a step, see ``Spread``.

    Raises:
        ConfigError: If speeds are not positive numbers or cannot be measured, the timeout is out of range or the
            exchange is unknown.
    """
    each = MEASURED if speeds == MEASURED else _speeds(speeds)
    if not 0 < timeout <= LONGEST_TIMEOUT_S:
        raise ConfigError(f"--timeout must be more than 0 seconds and at most {LONGEST_TIMEOUT_S:g}, got {timeout:g}")
    if exchange not in get_args(ExchangeKind):
        raise ConfigError(f"--exchange must be one of {', '.join(get_args(ExchangeKind))}, got {shortened(exchange)!r}")
    kind = cast("ExchangeKind", exchange)
    if each == MEASURED and kind == "dataflow":
        raise ConfigError(
            f"--speeds {MEASURED} with --exchange dataflow: {TOO_EARLY}; write a number for each rank, e.g. --speeds "
            "1,1,0.5, or leave --exchange out"
        )
    return RankOptions(ranks=ranks, comm=comm, timeout=timeout, speeds=each, exchange=kind)


def _speeds(text: str | None) -> tuple[float, ...]:
    """Parse the relative speeds of ranks; () if there are none."""
    shown = shortened(text or "")
    try:
        each = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise ConfigError(f"--speeds {shown!r}: write a number for each rank, e.g. 1,1,0.5, or {MEASURED}") from error
    if any(not 0 < speed < float("inf") for speed in each):
        raise ConfigError(f"--speeds {shown!r}: speeds are positive numbers")
    return each


def output_paths(run: RunConfig, output: Path | None, force: bool) -> list[Path]:
    """Return one path per picture.

    Args:
        run: Gives the number of pictures, and prompt and seed for the default name.
        output: PNG file; None for a name after prompt and seed, numbered so that no existing file is overwritten.
        force: Allow existing files.

    Raises:
        ConfigError: If ``output`` is not a PNG file, exists without ``force``, or cannot be written.
    """
    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: only .png files are written, since they can carry the recipe")
    slug = re.sub(r"[^a-z0-9]+", "-", run.prompt.lower()).strip("-")[:48] or "picture"
    base = output or Path(f"{slug}-{run.seed}.png")
    many = run.num_images > 1
    paths = [base.with_stem(f"{base.stem}-{i}") if many else base for i in range(run.num_images)]
    check_target(paths[-1], "--output")
    taken = [path for path in paths if path.exists() and not force]
    if taken and output is None:
        free = next(n for n in range(2, 10**6) if not any(p.with_stem(f"{p.stem}-{n}").exists() for p in paths))
        return [path.with_stem(f"{path.stem}-{free}") for path in paths]
    if taken:
        raise ConfigError(f"--output {taken[0]}: exists; give another name, or --force to overwrite it")
    return paths


def check_target(path: Path, option: str) -> None:
    """Check that a file can be written at a path.

    Args:
        path: The path.
        option: Name of the command-line option in error messages.

    Raises:
        ConfigError: If the path is invalid or a folder, device or pipe, or its folder is missing or not writable.
    """
    try:
        if not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: the folder {path.parent} does not exist")
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{option} {path}: the folder {path.parent} cannot be written to")
        if path.is_dir() or not path.name:
            raise ConfigError(f"{option} {str(path)!r}: is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{option} {path}: is no regular file, and would be replaced by one; name another")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) < 80 else f"{str(path)[:80]}..."
        raise ConfigError(f"{option} {shown!r}: cannot be a file: {error.args[-1]}") from error
