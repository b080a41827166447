"""Replay of recipes: the model and the picture of a recipe, which may have moved, and options that name them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve

from vitrail.backbones.loading.source import kind_of
from vitrail.core.config.file_digests import shows_nothing
from vitrail.core.config.loader import loader_of
from vitrail.core.config.overrides import override_method
from vitrail.core.config.paths import expanded
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.cascade import Finish
from vitrail.core.method.members import ReadsFiles
from vitrail.core.method.returned_values import check_digest
from vitrail.errors import ConfigError, Problems, VitrailError
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.input_digests import content_digest
from vitrail.sampling.methods import composition_of
from vitrail.sampling.recipe import Recipe
from vitrail.sampling.region_masks import mask_digests, read_masks

if TYPE_CHECKING:
    from vitrail.core.method.composition import Composition
    from vitrail.core.method.stage import Place

USEFUL = {"folder": ("variant",), "file": ("model_config",), "hub": ("variant", "revision")}


def relocated(recipe: Recipe, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the run of a recipe with some fields replaced; options that do not apply to a new model are dropped.

    Args:
        recipe: As a picture carries it.
        changes: Fields that are different here, such as the path of the model.
    """
    run = recipe.run | changes
    if "model" not in changes:
        return run
    useful = USEFUL[kind_of(changes["model"], registry())]
    options = ("model_config", "variant", "revision")
    return run | {name: None for name in options if name not in useful and name not in changes}


def check_origin(where: str, sources: Mapping[str, str | None], changes: Mapping[str, Any]) -> None:
    """Refuse paths and hub ids that a recipe names, since its file may come from an untrusted source.

    Recipes that Vitrail writes name registered models, and files and folders without their directory.

    Args:
        where: The recipe's file, for the message.
        sources: What the recipe names, by the command-line option without dashes.
        changes: Fields of the run that the user has given, which are trusted.

    Raises:
        ConfigError: Naming the option that allows the path.
    """
    for option, value in sources.items():
        if value is None or option.replace("-", "_") in changes or value in registry().names("models"):
            continue
        origin = f"{where}: made with the {option} {value!r}"
        if Path(value).name != value or option == "revision":  # a hub serves commits of strangers' pull requests, too
            raise ConfigError(
                f"{origin}; a picture does not choose what is read or fetched: give --{option} if you trust it"
            )
        if option != "model-config" and not expanded(value).exists():  # which may be the name of a family
            raise ConfigError(f"{origin}, which is not here; give its --{option}")


def check_image(recipe: Recipe, run: RunConfig, where: str) -> None:
    """Refuse another picture than the one that the recipe started from.

    Args:
        recipe: As a picture carries it.
        run: The run, with the path of the picture here.
        where: The recipe's picture, for the message.

    Raises:
        ConfigError: If the picture does not exist, is not a picture, or is another one.
    """
    if run.image is None:
        return
    there = recipe.given.get("image")
    if there is not None and content_digest(open_picture(run.image, quiet=True)) != there:
        raise ConfigError(f"{where}: {run.image!r} is not the picture it started from; give that one's --image")


def check_masks(recipe: Recipe, run: RunConfig, where: str) -> None:
    """Refuse other mask pictures than those that a recipe's regions were made with.

    Args:
        recipe: As a picture carries it.
        run: The run, with the paths of the masks here.
        where: The recipe's picture, for the message.

    Raises:
        ConfigError: If a mask does not exist, is not a picture, or is another one.
    """
    for name, digest in mask_digests(run.regions, read_masks(run.regions)).items():
        if recipe.given.get(name) not in (None, digest):
            number = int(name.split(".")[1])
            raise ConfigError(
                f"{where}: {run.regions[number].mask!r} is not the mask that region {number} was made with; give that "
                f"one's path by --region-mask {number}=PATH"
            )


def check_files(recipe: Recipe, composition: Composition, where: str) -> None:
    """Refuse other contents of the files that strategies read than the recipe's, before any of them is parsed.

    A recipe may come from an untrusted source, and chooses these files; its digests tell that they are the ones that
    the picture was made with. Another file, given as an intentional change, is trusted.

    Args:
        recipe: As a picture carries it.
        composition: Its method, with intentional changes.
        where: The recipe's picture, for the message.

    Raises:
        ConfigError: Listing every file that has changed, or if none has, all that are missing or broken.
    """
    if recipe.method is not None:
        then = {place.path: place.strategy for place in composition_of(recipe.method).places()}
        problems = Problems()
        for place in composition.places():
            with problems.collect():
                _check_content(recipe, place, then.get(place.path), where)
        problems.tell()
    composition.check_files(registered_name)


def _check_content(recipe: Recipe, place: Place, then: object, where: str) -> None:
    """Refuse a file that the recipe chose, not the user, if its content is not the recipe's.

    A changed strategy may still read the recipe's file: that is so if it reads what the recipe's strategy would.
    """
    now, name = _digest(place.path, place.call(registered_name)), type(place.strategy).__name__
    if not now or shows_nothing(now) or now == recipe.files.get(place.path):  # of what is missing its reader tells
        return
    if place.path not in recipe.files:
        if then == place.strategy:
            raise ConfigError(
                f"{where}: {place.path}: {name} reads a file, and the recipe does not tell what was in it; choose one "
                f"by --set {place.path}... if you trust it"
            )
    elif then is not None and now == _digest(place.path, StrategyCall(place.slot, then, named=registered_name)):
        raise ConfigError(
            f"{where}: {place.path}: {name} reads a file that has changed since the picture was made; give it back, or "
            f"choose another by --set {place.path}..."
        )


def _digest(path: str, asked: StrategyCall) -> str:
    try:
        return check_digest(asked, asked.ask(ReadsFiles.of(asked.strategy).digest))
    except (VitrailError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from error


def with_upscaler(recipe: Recipe, assignments: Sequence[str], where: str) -> Recipe:
    """Return the recipe of kept latents with another upscaler, such as one whose file is elsewhere now.

    Args:
        recipe: As kept latents carry it.
        assignments: "finish.upscaler...=VALUE" each.
        where: Their file, for the message.

    Raises:
        ConfigError: If one is about what has been sampled already, or there is no such upscaler.
    """
    if not assignments:
        return recipe
    paths = [assignment.partition("=")[0] for assignment in assignments]
    wrong = [path for path in paths if [part.strip() for part in path.split(".")][:2] != ["finish", "upscaler"]]
    if wrong:
        raise ConfigError(f"--set {wrong[0]}: the latents are sampled, so that only finish.upscaler... can be set")
    if recipe.method is None or recipe.method.get("finish") is None:
        raise ConfigError(f"--set {paths[0]}: the method in {where} has no finish")
    return evolve(recipe, method=override_method(recipe.method, assignments))


def finish_of(recipe: Recipe, where: str) -> Finish | None:
    """Return the finish of a recipe's method, its upscaler's file being what it was; None if it has none.

    A file of other content is not parsed, since the recipe, which chooses it, may come from an untrusted source.

    Args:
        recipe: As kept latents carry it.
        where: Their file, for the message.

    Raises:
        ConfigError: If the upscaler is not registered here, or its file is missing or has changed.
    """
    table = None if recipe.method is None else recipe.method.get("finish")
    if table is None:
        return None
    finish = loader_of(registry()).structure(table, Finish, f"finish of the method in {where}")
    path = "finish.upscaler"
    changed = ConfigError(
        f"{where}: {path}: {type(finish.upscaler).__name__} reads a file that has changed since the latents were "
        f"sampled; give it back, or say where it is now by --set {path}..."
    )
    asked = StrategyCall("upscaler", finish.upscaler, named=registered_name)
    digest = _digest(f"{where}: {path}", asked)
    is_same = digest == recipe.files.get(path, "")
    if not is_same and not shows_nothing(digest):
        raise changed
    try:
        asked.ask(ReadsFiles.of(finish.upscaler).check)
    except (VitrailError, OSError) as error:
        raise ConfigError(f"{where}: {path}: {error}; say where it is now by --set {path}...") from error
    if not is_same:
        raise changed
    return finish


def located(run: RunConfig, folder: Path | None = None, pictures: bool = True) -> list[str]:
    """Return command line options that name the model, the picture and the masks of a run, where needed.

    Args:
        run: A run whose paths are relative to the working folder.
        folder: Folder in which the command will be called; the working folder if None.
        pictures: Whether the command samples again, and so needs picture and masks besides the model.
    """
    words: list[str] = []
    if run.model not in registry().names("models"):
        words += ["--model", _seen_from(folder, run.model)]
        if run.model_config is not None and Path(run.model_config).is_dir():
            words += ["--model-config", _seen_from(folder, run.model_config)]
    if pictures and run.image is not None:
        words += ["--image", _seen_from(folder, run.image)]
    for number, region in enumerate(run.regions if pictures else ()):
        if region.mask is not None:
            words += ["--region-mask", f"{number}={_seen_from(folder, region.mask)}"]
    return words


def _seen_from(folder: Path | None, name: str) -> str:
    """Return a path relative to another folder; absolute and non-existent ones, such as hub ids, are unchanged."""
    if folder is None or Path(name).is_absolute() or not Path(name).exists():
        return name
    return Path(os.path.relpath(name, folder)).as_posix()
