"""``vitrail decode``: decode latents that could not be decoded when they were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitrail.backbones.loading.model_errors import model_blamed
from vitrail.backbones.loading.source import ModelOptions, find_model
from vitrail.cli.arguments import output_paths
from vitrail.cli.console import console, say
from vitrail.cli.options import (
    Device,
    Dtype,
    Force,
    ModelConfig,
    Output,
    Revision,
    Variant,
    Verbose,
    configure_logging,
)
from vitrail.core.config.loader import loader_of
from vitrail.core.config.paths import expanded, expanded_or_none
from vitrail.core.config.run_config import RunConfig
from vitrail.errors import ConfigError, ModelError
from vitrail.sampling.discovery import registry
from vitrail.sampling.kept_latents import SUFFIX, load_latents
from vitrail.sampling.recipe import save_picture
from vitrail.sampling.replaying import check_origin, finish_of, relocated, with_upscaler

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.cascade import Finish


def decode(
    file: Annotated[Path, typer.Argument(help="Latents that vitrail kept: NAME.latents.safetensors.")],
    model: Annotated[str | None, typer.Option(help="Where the model is; needed if it is a file or folder.")] = None,
    model_config: ModelConfig = None,
    variant: Variant = None,
    revision: Revision = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Where an upscaler's file is now: finish.upscaler.file=PATH. Repeatable."),
    ] = None,
    output: Output = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    verbose: Verbose = False,
) -> None:
    """Make the picture of latents that could not be decoded when they were sampled."""
    changes = {"model": model, "model_config": model_config, "dtype": dtype}
    changes |= {"variant": variant, "revision": revision}
    configure_logging(verbose)
    decode_file(file, output, force, device, {k: v for k, v in changes.items() if v is not None}, sets or ())


def decode_file(
    file: Path,
    output: Path | None,
    force: bool,
    device: str | None,
    changes: dict[str, Any],
    sets: Sequence[str] = (),
) -> None:
    """Decode saved latents and write the picture with their recipe.

    Args:
        file: File of ``save_latents``.
        output: PNG file; ``NAME.png`` beside ``NAME.latents.safetensors`` if None.
        force: Overwrite an existing output file.
        device: A torch device; None for the default.
        changes: Fields of the run to replace: path of the model, or dtype of its networks.
        sets: Overrides of the finish's upscaler; a file that it reads must be the one it was.

    Raises:
        VitrailError: If the file is not saved latents, its model cannot be loaded, or the picture cannot be written.
    """
    from vitrail.backbones.pipeline_backbone import quiet_libraries

    file, output = expanded(file), expanded_or_none(output)
    latents, recipe = load_latents(file)
    recipe = with_upscaler(recipe, sets, str(file))
    run = loader_of(registry()).structure(relocated(recipe, changes), RunConfig, f"run in {file}")
    sources = {"model": run.model, "model-config": run.model_config, "revision": run.revision}
    check_origin(str(file), sources, changes)
    try:
        spec = find_model(run.model, registry(), ModelOptions.of(run))
    except ModelError as error:
        raise ConfigError(f"{file}: {error}; say where its model is with --model") from error
    finish = finish_of(recipe, str(file))
    path = output_paths(run, output or file.with_name(file.name.removesuffix(SUFFIX) + ".png"), force)[0]
    out = console()
    say(out, f"loading model {run.model}")
    quiet_libraries()
    backbone = spec.load(device)
    with model_blamed(run.model, "cannot decode"):
        image = _picture(backbone, run, latents, finish)
    save_picture(image, recipe, path, overwrite=force)
    say(out, f"{path}: {image.width}x{image.height}, seed {run.seed}")


def _picture(backbone: Backbone, run: RunConfig, latents: Tensor, finish: Finish | None) -> Any:
    import torch

    from vitrail.comm.backends.in_process import solo
    from vitrail.core.engine.cpu_threads import threads_of
    from vitrail.core.engine.exchange import Exchange
    from vitrail.sampling.finishing import finished_picture

    with torch.inference_mode(), threads_of(backbone) as threads:
        exchange = Exchange.among(solo(), workers=threads)
        picture = finished_picture(latents.to(backbone.device), finish, run, backbone, exchange)
        return backbone.to_pil(picture)[0]
