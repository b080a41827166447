"""Saving of latents whose pictures could not be decoded or written, with the command that decodes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.cli.console import command_line, say
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import CommError, DecodeError, OutputError
from vitrail.sampling.kept_latents import SUFFIX, save_latents
from vitrail.sampling.recipe import Recipe
from vitrail.sampling.replaying import located

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor


LONGEST_NAME = 255  # maximum length of a file name in bytes, on common file systems


@contextmanager
def latents_written(out: Console, paths: Sequence[Path], run: RunConfig) -> Iterator[None]:
    """Save the latents of pictures that the block could not decode, and re-raise the error.

    Args:
        out: Console for the command that decodes them.
        paths: Paths of the pictures.
        run: The run of the command line.

    Raises:
        DecodeError: Of the block.
        CommError: Of the block.
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
    """Save the latents of a picture that the block could not write, and re-raise the error.

    Args:
        out: Console for the command that decodes them.
        latents: Latents of the picture, Float32[Tensor, "channels height width"].
        recipe: Recipe of the picture.
        path: Path of the picture.
        run: The run of the command line.

    Raises:
        OutputError: Of the block.
    """
    try:
        yield
    except OutputError:
        keep(out, latents, recipe, path, run)
        raise


def keep(out: Console, latents: Tensor, recipe: Recipe, path: Path, run: RunConfig) -> None:
    """Save latents beside their picture's path or, if that fails, in the temporary folder.

    Args:
        out: Console for the command that decodes them, and for errors.
        latents: Latents of one picture, Float32[Tensor, "channels height width"].
        recipe: Recipe of the picture.
        path: Path of the picture.
        run: The run of the command line.
    """
    is_short = len(os.fsencode(path.stem + SUFFIX)) <= LONGEST_NAME
    stem = path.stem if is_short else f"{path.stem[:40]}-{recipe.digest}"  # unique to the picture
    names = (path, *(path.with_name(f"{stem}-{number}.png") for number in range(2, 100)))
    target = next((each for each in names if not os.path.lexists(each)), path)  # avoids files of other runs
    for folder in (path.parent, Path(tempfile.gettempdir())):
        kept = folder / (stem + SUFFIX)
        try:
            save_latents(latents[None], recipe, kept)
        except OutputError as error:
            say(out, str(error), style="yellow")
            continue
        again = command_line("vitrail", "decode", str(kept), "-o", str(target), *located(run, pictures=False))
        say(out, f"{kept}: the latents are kept; go on with `{again}`", style="yellow")
        return
