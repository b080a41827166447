"""What a picture carries to be made again: the whole recipe, and text that other tools read."""

from __future__ import annotations

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
from vitrail.core.config.loader import Loader
from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.core.config.plain_data import check_plain
from vitrail.core.config.renamed_keys import current_keys, current_path, former_keys
from vitrail.core.config.run_config import RunConfig
from vitrail.core.schedule.streams import SCHEME
from vitrail.errors import ConfigError
from vitrail.sampling.discovery import registry
from vitrail.sampling.run_plugins import plugin_changes
from vitrail.sampling.start_picture import of_any_size

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.core.method.composition import Composition

KEY = "vitrail.run"
FORMAT = 2  # of recipes; before 2 an empty negative_prompt was none
SEAL = "seal"  # of a recipe's text, a digest of the rest; older ones have none


def current_versions() -> dict[str, str]:
    """Of Vitrail, its random streams, its recipes and the libraries that shape the picture."""
    libraries = {name: metadata.version(name) for name in ("vitrail", "torch", "diffusers")}
    return libraries | {"streams": str(SCHEME), "recipe": str(FORMAT)}


def digest_of(text: str) -> str:
    """Twelve hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@frozen
class Recipe:
    """A run and its method as plain data.

    Attributes:
        run: The fields of ``RunConfig``.
        method: The composition with every default spelt out, or None if a strategy is not registered.
        versions: Of Vitrail, its random streams and the libraries that shape the picture.
        given: Digests of inputs that shaped the picture and are not in here, such as a ControlNet's hint, by name.
        files: Digests of files that strategies read, by where the strategy stands in the method.
        plugins: Versions of plugins that wrapped stages, by name.
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
        """The recipe of one picture; a model's folder and a method's file are named without their path.

        Args:
            config: The run.
            composition: The method.
            given: See the attributes, as the others.
            files: ``composition.digests()`` as the run began.
            plugins: Of those that wrapped a stage.
        """
        run = attrs.asdict(config)
        run["method"] = Path(run["method"]).stem
        if run["model"] not in registry().names("models") and expanded(run["model"]).exists():
            run["model"] = expanded(run["model"]).resolve().name
        for name in ("image", "model_config"):
            if run[name] is not None:
                run[name] = Path(run[name]).name
        try:
            method = Loader(registry()).unstructure(composition)
        except ConfigError:
            method = None
        return cls(run, method, current_versions(), dict(given or {}), dict(files or {}), dict(plugins or {}))

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Recipe:
        """A recipe as a file carries it, also one of an earlier format, which means the same picture.

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
        """Stands for everything that determines the pixels, versions aside."""
        more = [part for part in (self.files, self.plugins) if part]  # older digests stay what they are
        return digest_of(json.dumps([self.run, former_keys(self.method), self.given, *more], sort_keys=True))

    def changes(self, plugins: Mapping[str, str] | None = None) -> list[str]:
        """What has another version here than when the picture was made, one line each.

        Args:
            plugins: Versions of those that wrap stages here, by name.
        """
        here = current_versions()
        return [
            f"note: made with {name} {then}, here is {here.get(name, 'none')}; pixels may differ"
            for name, then in self.versions.items()
            if then != here.get(name)
        ] + plugin_changes(self.plugins, plugins or {})

    def parameters(self) -> str:
        """The text that A1111-style tools read."""
        run = self.run
        negative = f"Negative prompt: {run['negative_prompt']}\n" if run["negative_prompt"] else ""
        scheduler = run["scheduler"] or "model default"
        return (
            f"{run['prompt']}\n{negative}Steps: {run['num_inference_steps']}, Sampler: {scheduler}, "
            f"CFG scale: {run['guidance_scale']:g}, Seed: {run['seed']}, Size: {run['width']}x{run['height']}, "
            f"Model: {run['model']}, Method: {run['method']}, Version: vitrail {self.versions['vitrail']}"
        )


def save_picture(image: Image, recipe: Recipe, path: Path, overwrite: bool = True) -> None:
    """Write a PNG with its recipe inside.

    Args:
        image: In any mode that PNG has.
        recipe: Of the picture.
        path: Of the file, which appears only when it is complete.
        overwrite: Whether it may take the place of another.

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
    """A recipe as JSON, with a digest of what it says."""
    data = attrs.asdict(recipe)
    return json.dumps(data | {SEAL: _seal(data)}, ensure_ascii=False)


def _seal(data: Mapping[str, Any]) -> str:
    """Of what JSON keeps of plain data, however it is written."""
    kept = json.loads(json.dumps(data))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path) -> Recipe:
    """The recipe inside a picture; its pixels are checked and not decoded, so it may be of any size.

    Raises:
        ConfigError: If the file is no PNG, carries none, or one that is not what was written.
    """
    from PIL import Image

    try:
        refuse_irregular(path)
        with warnings.catch_warnings(action="ignore"), of_any_size(), Image.open(path) as image:
            text = image.info.get(KEY)
            image.verify()  # every chunk of it by its checksum
    except Exception as error:  # Pillow has errors of many kinds for a broken file
        raise ConfigError(f"{path}: cannot be read as a picture: {_reason(error)}") from error
    if not isinstance(text, str):
        raise ConfigError(f"{path}: carries no recipe; only PNG files that vitrail wrote do, as they left it")
    return recipe_of(text, path)


def recipe_of(text: str, where: object) -> Recipe:
    """A recipe from its text.

    Args:
        text: JSON; what has a seal must be what was sealed.
        where: It stands, for the error.

    Raises:
        ConfigError: If it is none.
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


def _reason(error: Exception) -> str:
    """Why a picture cannot be read, without its path."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is none, or cut off"
    return str(getattr(error, "strerror", None) or error)
