"""Latents kept without a picture: a file of them with their recipe, which ``vitrail decode`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from vitrail.core.config.sealed import load_sealed, save_sealed
from vitrail.core.engine.memory_backoff import is_out_of_memory, let_go
from vitrail.errors import CommError, ConfigError, DecodeError
from vitrail.sampling.recipe import Recipe, recipe_of

if TYPE_CHECKING:
    from torch import Tensor


SUFFIX = ".latents.safetensors"


@contextmanager
def latents_kept(latents: Tensor, recipes: Sequence[Recipe]) -> Iterator[None]:
    """Attach latents to any error in the block, so that hours of sampling are not lost.

    Args:
        latents: Final latents of all pictures, Float32[Tensor, "images channels height width"].
        recipes: One per picture.

    Raises:
        DecodeError: In place of any error, with the latents and recipes.
        CommError: If another rank failed; its ``kept`` is the DecodeError that this rank would have raised.
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
    """Write the latents of one picture atomically.

    Args:
        latents: As sampled, Float32[Tensor, "1 channels height width"].
        recipe: Recipe of the picture.
        path: Path of the file, by convention ``NAME.latents.safetensors``.
    """
    save_sealed(path, {"latents": latents}, json.dumps(attrs.asdict(recipe)))


def load_latents(path: Path) -> tuple[Tensor, Recipe]:
    """Read a file that ``save_latents`` wrote.

    Raises:
        ConfigError: If the file is not such a file or is damaged.
    """
    tensors, text = load_sealed(path, "latents that vitrail kept")
    recipe = recipe_of(text, path)
    latents = tensors.get("latents")
    if latents is None or latents.ndim != 4 or not latents.is_floating_point():
        raise ConfigError(f"{path}: is not latents that vitrail kept: it has no tensor of four dimensions 'latents'")
    return latents, recipe
