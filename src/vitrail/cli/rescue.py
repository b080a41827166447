"""Latents of pictures that could not be decoded or written, kept with the command that goes on."""

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


LONGEST_NAME = 255  # bytes, on the file systems in use


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
