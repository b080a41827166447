"""Latents that wait for their picture: a file of them with their recipe, and the command that decodes it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vitrail.backbones.source import ModelOptions, find_model
from vitrail.core.config import Loader
from vitrail.core.forwarding import is_out_of_memory, let_go
from vitrail.core.run_config import RunConfig
from vitrail.discovery import registry
from vitrail.errors import CommAborted, ConfigError, DecodeError, ModelError
from vitrail.recipe import KEY, Recipe, save_picture
from vitrail.replaying import located, relocated
from vitrail.terminal import console, say

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

SUFFIX = ".latents.safetensors"


@contextmanager
def latents_kept(latents: Tensor, recipes: Sequence[Recipe]) -> Iterator[None]:
    """Give latents to whatever goes wrong in the block, so that hours of sampling are not lost.

    Args:
        latents: Of all pictures, Float32[Tensor, "images channels height width"].
        recipes: One a picture.

    Raises:
        DecodeError: In place of any error, with the latents and recipes.
        CommAborted: If another rank failed; ``kept`` is then what this rank would have raised.
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
        if isinstance(error, CommAborted):
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
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    try:
        tensors = {"latents": latents.detach().cpu().contiguous().clone()}
        save_file(tensors, part, metadata={KEY: json.dumps(attrs.asdict(recipe))})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_latents(path: Path) -> tuple[Tensor, Recipe]:
    """Read what ``save_latents`` wrote.

    Raises:
        ConfigError: If the file is none of ours or is broken.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            latents: Tensor = file.get_tensor("latents")
            return latents, Recipe(**json.loads((file.metadata() or {})[KEY]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: holds no latents that vitrail kept, or is broken: {error}") from error


@contextmanager
def latents_written(out: Console, paths: Sequence[Path], run: RunConfig) -> Iterator[None]:
    """Write the latents of pictures that the block could not decode beside where these would be.

    Args:
        out: Where to say how to go on.
        paths: Of the pictures.
        run: As the command line gave it.
    """
    try:
        yield
    except (CommAborted, DecodeError) as error:
        kept = error if isinstance(error, DecodeError) else error.kept
        if kept is not None:
            _write(out, kept, paths, run)
        raise


def _write(out: Console, error: DecodeError, paths: Sequence[Path], run: RunConfig) -> None:
    for path, latents, recipe in zip(paths, error.latents, error.recipes, strict=False):
        kept = path.with_suffix(SUFFIX)
        save_latents(latents[None], recipe, kept)
        again = f"vitrail decode {shlex.quote(str(kept))} -o {shlex.quote(str(path))}{located(run)}"
        say(out, f"{kept}: the latents are kept; go on with `{again}`", style="yellow")


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
    from vitrail.rendering import output_paths

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
    image = _picture(spec.load(device), run, latents)
    save_picture(image, recipe, path)
    say(out, f"{path}: {image.width}x{image.height}, seed {run.seed}")


def _picture(backbone: Any, run: RunConfig, latents: Tensor) -> Any:
    import torch

    from vitrail.comm.in_process import solo
    from vitrail.core.cpu_threads import threads_of
    from vitrail.core.exchange import Exchange

    with torch.inference_mode(), threads_of(backbone) as threads:
        exchange = Exchange.among(solo(), workers=threads)
        decoded = backbone.decode(latents.to(backbone.device), exchange, run.wrap, run.memory == "auto")
        return backbone.to_pil(decoded[..., : run.height, : run.width])[0]
