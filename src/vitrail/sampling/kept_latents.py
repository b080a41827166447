"""Latents that wait for their picture: a file of them with their recipe, and the command that decodes it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vitrail.backbones.loading.model_errors import model_blamed
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.cli.console import command_line, console, say
from vitrail.core.config.loader import Loader
from vitrail.core.config.paths import expanded, expanded_or_none
from vitrail.core.config.run_config import RunConfig
from vitrail.core.config.sealed import load_sealed, save_sealed
from vitrail.core.engine.forwarding import is_out_of_memory, let_go
from vitrail.errors import CommError, ConfigError, DecodeError, ModelError, OutputError
from vitrail.sampling.discovery import registry
from vitrail.sampling.recipe import Recipe, recipe_of, save_picture
from vitrail.sampling.replaying import located, relocated

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from vitrail.core.method.backbone import Backbone

SUFFIX = ".latents.safetensors"
LONGEST_NAME = 255  # bytes, on the file systems in use


@contextmanager
def latents_kept(latents: Tensor, recipes: Sequence[Recipe]) -> Iterator[None]:
    """Give latents to whatever goes wrong in the block, so that hours of sampling are not lost.

    Args:
        latents: Of all pictures, Float32[Tensor, "images channels height width"].
        recipes: One a picture.

    Raises:
        DecodeError: In place of any error, with the latents and recipes.
        CommError: If another rank failed; ``kept`` is then what this rank would have raised.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            let_go(error)
        kept = DecodeError(
            f"the picture could not be decoded: {type(error).__name__}: {error}; what was sampled is not lost, "
            "this error has the latents",
            latents,
            recipes,
        )
        if isinstance(error, CommError):
            error.kept = kept
            raise
        raise kept from error


def save_latents(latents: Tensor, recipe: Recipe, path: Path) -> None:
    """Write the latents of one picture; the file appears only when it is complete.

    Args:
        latents: As they were sampled, Float32[Tensor, "1 channels height width"].
        recipe: Of the picture.
        path: Of the file, by custom ``NAME.latents.safetensors``.
    """
    save_sealed(path, {"latents": latents}, json.dumps(attrs.asdict(recipe)))


def load_latents(path: Path) -> tuple[Tensor, Recipe]:
    """Read what ``save_latents`` wrote.

    Raises:
        ConfigError: If the file is none of ours or is damaged.
    """
    tensors, text = load_sealed(path, "latents that vitrail kept")
    recipe = recipe_of(text, path)
    latents = tensors.get("latents")
    if latents is None or latents.ndim != 4 or not latents.is_floating_point():
        raise ConfigError(f"{path}: is not latents that vitrail kept: it has no tensor of four dimensions 'latents'")
    return latents, recipe


@contextmanager
def latents_written(out: Console, paths: Sequence[Path], run: RunConfig) -> Iterator[None]:
    """Keep the latents of pictures that the block could not decode.

    Args:
        out: Where to say how to go on.
        paths: Of the pictures.
        run: As the command line gave it.
    """
    try:
        yield
    except (CommError, DecodeError) as error:
        kept = error if isinstance(error, DecodeError) else error.kept
        if kept is not None:
            for path, latents, recipe in zip(paths, kept.latents, kept.recipes, strict=False):
                keep(out, latents, recipe, path, run)
        raise


@contextmanager
def latents_instead(out: Console, latents: Tensor, recipe: Recipe, path: Path, run: RunConfig) -> Iterator[None]:
    """Keep the latents of a picture that the block cannot write; see ``keep``."""
    try:
        yield
    except OutputError:
        keep(out, latents, recipe, path, run)
        raise


def keep(out: Console, latents: Tensor, recipe: Recipe, path: Path, run: RunConfig) -> None:
    """Write latents beside where their picture would be or, if that cannot be, into the temporary folder.

    Args:
        out: Where to say how to go on.
        latents: Of one picture, Float32[Tensor, "channels height width"].
        recipe: Of the picture.
        path: Of the picture.
        run: As the command line gave it.
    """
    is_short = len(os.fsencode(path.stem + SUFFIX)) <= LONGEST_NAME
    stem = path.stem if is_short else f"{path.stem[:40]}-{recipe.digest}"  # no other picture's
    names = (path, *(path.with_name(f"{stem}-{number}.png") for number in range(2, 100)))
    target = next((each for each in names if not os.path.lexists(each)), path)  # not what another run has written
    for folder in (path.parent, Path(tempfile.gettempdir())):
        kept = folder / (stem + SUFFIX)
        try:
            save_latents(latents[None], recipe, kept)
        except OutputError as error:
            say(out, str(error), style="yellow")
            continue
        again = command_line("vitrail", "decode", str(kept), "-o", str(target), *located(run))
        say(out, f"{kept}: the latents are kept; go on with `{again}`", style="yellow")
        return


def decode(file: Path, output: Path | None, force: bool, device: str | None, changes: dict[str, Any]) -> None:
    """Make the picture of kept latents and write it with their recipe.

    Args:
        file: What ``save_latents`` wrote.
        output: PNG file; ``NAME.png`` beside ``NAME.latents.safetensors`` if None.
        force: Overwrite it.
        device: A torch device, or None.
        changes: Fields of the run that are different here: where its model is, or the type of its networks.
    """
    from vitrail.backbones.pipeline_backbone import quiet_libraries
    from vitrail.cli.rendering import output_paths

    file, output = expanded(file), expanded_or_none(output)
    latents, recipe = load_latents(file)
    run = Loader(registry()).structure(relocated(recipe, changes), RunConfig, f"run in {file}")
    try:
        spec = find_model(run.model, registry(), ModelOptions.of(run))
    except ModelError as error:
        raise ConfigError(f"{file}: {error}; say where its model is with --model") from error
    path = output_paths(run, output or file.with_name(file.name.removesuffix(SUFFIX) + ".png"), force)[0]
    out = console()
    say(out, f"loading model {run.model}")
    quiet_libraries()
    backbone = spec.load(device)
    with model_blamed(run.model, "cannot decode"):
        image = _picture(backbone, run, latents)
    save_picture(image, recipe, path)
    say(out, f"{path}: {image.width}x{image.height}, seed {run.seed}")


def _picture(backbone: Backbone, run: RunConfig, latents: Tensor) -> Any:
    import torch

    from vitrail.comm.backends.in_process import solo
    from vitrail.core.engine.cpu_threads import threads_of
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.schedule.streams import Streams

    with torch.inference_mode(), threads_of(backbone) as threads:
        given = (Exchange.among(solo(), workers=threads), run.wrap, run.memory == "auto", Streams(run.seed))
        decoded = backbone.decode(latents.to(backbone.device), *given)
        return backbone.to_pil(decoded[..., : run.height, : run.width])[0]
