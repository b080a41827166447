"""Recipes: what a picture carries so that it can be made again, and text that other tools read."""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.atomic import replacing
from vitrail.core.config.loader import loader_of
from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.core.config.plain_data import check_plain
from vitrail.core.config.renamed_keys import current_keys, current_path, former_keys
from vitrail.core.config.run_config import RunConfig
from vitrail.core.method.registration import path_options
from vitrail.core.schedule.streams import SCHEME
from vitrail.errors import ConfigError
from vitrail.pictures.picture_files import of_any_size, why_unreadable
from vitrail.sampling.discovery import registry
from vitrail.sampling.run_plugins import plugin_changes

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.core.method.composition import Composition

KEY = "vitrail.run"
FORMAT = 2  # of recipes; before 2 an empty negative_prompt meant None
SEAL = "seal"  # key of a digest of the rest of the text; older recipes have none


def current_versions() -> dict[str, str]:
    """Return versions of Vitrail, its random streams, its recipes and the libraries that affect the picture."""
    return _libraries() | {"streams": str(SCHEME), "recipe": str(FORMAT)}


@functools.cache
def _libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("vitrail", "torch", "diffusers")}


def digest_of(text: str) -> str:
    """Return the first twelve hexadecimal digits of a text's SHA-256 digest."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _without_home(method: dict[str, Any], composition: Composition) -> dict[str, Any]:
    """Write ``~`` for the home folder in paths of strategies, so that a picture does not tell whose it is."""
    home = Path.home()
    for place in composition.places():
        table: Any = method
        for step in place.path.split("."):
            table = table[int(step) if step.isdecimal() else step]
        for name in path_options(type(place.strategy)):
            if isinstance(table[name], str) and Path(table[name]).is_relative_to(home):
                table[name] = str("~" / Path(table[name]).relative_to(home))
    return method


@frozen
class Recipe:
    """A run and its method as plain data.

    Attributes:
        run: The fields of ``RunConfig``.
        method: The composition with all defaults written out, or None if a strategy is not registered.
        versions: Versions of Vitrail, its random streams and the libraries that affect the picture.
        given: Digests of inputs that are not stored here, such as a ControlNet's hint, by name.
        files: Digests of files that strategies read, by the strategy's path in the method.
        plugins: Versions of plugins that wrapped hooks, by name.
    """

    run: dict[str, Any] = field(validator=v.instance_of(dict))
    method: dict[str, Any] | None = field(validator=v.optional(v.instance_of(dict)))
    versions: dict[str, str] = field(validator=v.instance_of(dict))
    given: dict[str, str] = field(factory=dict, validator=v.instance_of(dict))
    files: dict[str, str] = field(factory=dict, validator=v.instance_of(dict))
    plugins: dict[str, str] = field(factory=dict, validator=v.instance_of(dict))

    @classmethod
    def of(
        cls,
        config: RunConfig,
        composition: Composition,
        given: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
        plugins: Mapping[str, str] | None = None,
    ) -> Recipe:
        """Return the recipe of one picture; a model's folder and a method's file are stored without their path.

        Args:
            config: Settings of the run.
            composition: The method.
            given: See the attributes.
            files: ``composition.digests()`` when the run began.
            plugins: Versions of the plugins that wrapped a hook, by name.
        """
        run = config.as_table()
        run["method"] = Path(run["method"]).stem
        if run["model"] not in registry().names("models") and expanded(run["model"]).exists():
            run["model"] = expanded(run["model"]).resolve().name
        for name in ("image", "model_config"):
            if run[name] is not None:
                run[name] = Path(run[name]).name
        for region in run.get("regions", ()):
            region["mask"] = None if region["mask"] is None else Path(region["mask"]).name
        try:
            method = _without_home(loader_of(registry()).unstructure(composition), composition)
        except ConfigError:
            method = None
        return cls(run, method, current_versions(), dict(given or {}), dict(files or {}), dict(plugins or {}))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Recipe:
        """Return a recipe from a file's data, converted from earlier formats so that it means the same picture.

        Raises:
            TypeError: If it has other fields, or fields of other types.
        """
        recipe = cls(**data)
        files = {current_path(path, quiet=True): digest for path, digest in recipe.files.items()}
        recipe = evolve(recipe, method=current_keys(recipe.method, quiet=True), files=files)
        if "recipe" not in recipe.versions and recipe.run.get("negative_prompt") == "":
            return evolve(recipe, run=recipe.run | {"negative_prompt": None})
        return recipe

    @property
    def digest(self) -> str:
        """Digest of everything that determines the pixels, except versions."""
        more = [part for part in (self.files, self.plugins) if part]  # so that older digests stay valid
        return digest_of(json.dumps([self.run, former_keys(self.method), self.given, *more], sort_keys=True))

    def changes(self, plugins: Mapping[str, str] | None = None) -> list[str]:
        """Return what has another version here than when the picture was made, one line each.

        Args:
            plugins: Versions of the plugins that wrap hooks here, by name.
        """
        here = current_versions()
        return [
            f"note: made with {name} {then}, here is {here.get(name, 'none')}; pixels may differ"
            for name, then in self.versions.items()
            if then != here.get(name)
        ] + plugin_changes(self.plugins, plugins or {})

    def parameters(self) -> str:
        """Return the text that A1111-style tools read."""
        run = self.run
        negative = f"Negative prompt: {run['negative_prompt']}\n" if run["negative_prompt"] else ""
        scheduler = run["scheduler"] or "model default"
        return (
            f"{run['prompt']}\n{negative}Steps: {run['num_inference_steps']}, Sampler: {scheduler}, "
            f"CFG scale: {run['guidance_scale']:g}, Seed: {run['seed']}, Size: {run['width']}x{run['height']}, "
            f"Model: {run['model']}, Method: {run['method']}, Version: vitrail {self.versions['vitrail']}"
        )


def save_picture(image: Image, recipe: Recipe, path: Path, overwrite: bool = True) -> None:
    """Write a PNG with its recipe inside, atomically.

    Args:
        image: A picture in any mode that PNG supports.
        recipe: Recipe of the picture.
        path: Path of the file.
        overwrite: Whether an existing file may be replaced.

    Raises:
        OutputError: If it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", recipe.parameters())
    info.add_itxt(KEY, sealed_text(recipe), zip=True)
    with replacing(path, overwrite) as part:
        image.save(part, format="PNG", pnginfo=info)


def sealed_text(recipe: Recipe) -> str:
    """Return a recipe as JSON, with a digest of its content."""
    data = attrs.asdict(recipe)
    return json.dumps(data | {SEAL: _seal(data)}, ensure_ascii=False)


def _seal(data: Mapping[str, Any]) -> str:
    """Return the digest of data as JSON would preserve it, whatever its formatting."""
    kept = json.loads(json.dumps(data))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """Return the recipe inside a PNG; pixels are verified and not decoded, so it may be of any size.

    Raises:
        ConfigError: If the file is no PNG, has no recipe, or one that was changed.
    """
    from PIL import Image

    try:
        refuse_irregular(path)
        with warnings.catch_warnings(action="ignore"), of_any_size(), Image.open(path) as image:
            text = image.info.get(KEY)
            image.verify()  # checks the checksum of every chunk
    except Exception as error:  # Pillow raises many types for a broken file
        raise ConfigError(f"{path}: cannot be read as a picture: {why_unreadable(error)}") from error
    if not isinstance(text, str):
        raise ConfigError(f"{path}: carries no recipe; only PNG files that vitrail wrote do, as they left it")
    return recipe_of(text, path)


def recipe_of(text: str, where: object) -> Recipe:
    """Parse the text of a recipe.

    Args:
        text: JSON; if it has a seal, the seal must match.
        where: Origin of the text, for the error.

    Raises:
        ConfigError: If it is not a valid recipe.
    """
    try:
        data = json.loads(text)
        check_plain(data, str(where))
        if isinstance(data, dict) and SEAL in data and data.pop(SEAL) != _seal(data):
            raise ValueError("it is not what was written; take another copy of the file, or give options anew")
        recipe = Recipe.read(data)
        if not all(isinstance(each, str) for each in (*recipe.versions.values(), *recipe.given.values())):
            raise ValueError("versions and digests must be texts")
    except (TypeError, ValueError, RecursionError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise ConfigError(f"{where}: its recipe is broken: {reason}") from error
    return recipe
