"""``vitrail replay``: reproduce a picture from its embedded recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.cli.options import (
    Comm,
    Compile,
    Device,
    Dtype,
    Force,
    Image,
    ModelConfig,
    Output,
    Plugin,
    Ranks,
    Revision,
    Sets,
    Variant,
    Verbose,
    configure_logging,
)
from vitrail.core.config.loader import loader_of
from vitrail.core.config.overrides import override_method
from vitrail.core.config.paths import expanded
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.composition import Composition
from vitrail.errors import ConfigError, Problems
from vitrail.sampling.discovery import registry

if TYPE_CHECKING:
    from vitrail.sampling.recipe import Recipe


def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that vitrail wrote.")],
    model: Annotated[str | None, typer.Option(help="Where the model is; needed if it is a file or folder.")] = None,
    model_config: ModelConfig = None,
    variant: Variant = None,
    revision: Revision = None,
    image: Image = None,
    region_mask: Annotated[
        list[str] | None, typer.Option(help="NUMBER=PATH: where the mask of a region is. Repeatable.")
    ] = None,
    sets: Sets = None,
    output: Output = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    compiled: Compile = None,
    ranks: Ranks = None,
    comm: Comm = None,
    plugin: Plugin = None,
    verbose: Verbose = False,
) -> None:
    """Make a picture again from the recipe inside it."""
    from vitrail.cli import arguments, rendering
    from vitrail.sampling.run_plugins import attached, load_plugins, wrapping

    changes = {"model": model, "model_config": model_config, "image": image, "dtype": dtype, "compile": compiled}
    changes |= {"variant": variant, "revision": revision}
    given = {name: value for name, value in changes.items() if value is not None}
    run, composition, recipe = replayed(picture, sets or (), given, region_mask or ())
    configure_logging(verbose)
    rank_options = arguments.rank_options(ranks, comm)
    plugins = load_plugins(plugin or ())
    options = rendering.RenderOptions(output=output, force=force, device=device, ranks=rank_options, plugins=plugins)
    rendering.sample(run, composition, options, recipe.changes(wrapping(attached(plugins))))


def replayed(
    picture: Path, sets: Sequence[str], changes: dict[str, Any], region_masks: Sequence[str] = ()
) -> tuple[RunConfig, Composition, Recipe]:
    """Read the run and method from a picture's recipe.

    Args:
        picture: PNG file with a recipe.
        sets: Overrides of the method.
        changes: Fields of the run to replace, such as the path of the model.
        region_masks: Paths of the regions' masks, "NUMBER=PATH" each.

    Returns:
        Run, method and the recipe.

    Raises:
        VitrailError: If the picture has no recipe or one that cannot be replayed here, naming every problem.
    """
    from vitrail.cli.arguments import parse_region_masks
    from vitrail.sampling.recipe import read_recipe
    from vitrail.sampling.replaying import check_files, check_image, check_masks, check_origin, relocated

    picture = expanded(picture)
    recipe = read_recipe(picture)
    if recipe.method is None:
        raise ConfigError(f"{picture}: its method used a strategy that no plugin registers, so it cannot be replayed")
    regions = parse_region_masks(region_masks, recipe.run.get("regions", []))
    carried = {"image": recipe.run.get("image") is not None} | {
        f"regions.{number}.mask": region.get("mask") is not None for number, region in enumerate(regions)
    }
    lost = [name for name in recipe.given if not carried.get(name)]
    if lost:
        raise ConfigError(f"{picture}: made with {', '.join(lost)}, which a recipe cannot carry; make it in Python")
    loader, problems = loader_of(registry()), Problems()
    run = composition = None
    with problems.collect():
        tables = override_method(recipe.method, sets)
        composition = loader.structure(tables, Composition, f"method in {picture}")
        check_files(recipe, composition, str(picture))
    with problems.collect():
        table = relocated(recipe, changes) | ({"regions": regions} if regions else {})
        run = loader.structure(table, RunConfig, f"run in {picture}")
        sources = {"model": run.model, "model-config": run.model_config, "image": run.image, "revision": run.revision}
        check_origin(str(picture), sources, changes)
        check_image(recipe, run, str(picture))
        own = {text.partition("=")[0].strip() for text in region_masks}
        for number, region in enumerate(run.regions):
            trusted = {"region_mask": region.mask} if str(number) in own else {}
            check_origin(str(picture), {"region-mask": region.mask}, trusted)
        check_masks(recipe, run, str(picture))
        spec = find_model(run.model, registry(), ModelOptions.of(run))
        if composition is not None:
            composition.check(spec.offers, f"model {run.model!r}", registry())
    problems.tell()
    assert run is not None
    assert composition is not None
    return run, composition, recipe
