"""The commands that look at things: mask sources, traces, what is installed, whether a file is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Device, Dtype, Force, ModelConfig, Sets, Verbose, configure_logging


def heatmap(
    prompt: Annotated[str, typer.Argument(help="One sentence.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG, SVG or PDF file.")] = Path("heatmap.png"),
    masking: Annotated[str | None, typer.Option(help="A mask source; what suits the model if not given.")] = None,
    words: Annotated[list[str] | None, typer.Option(help="Of the prompt, that alone count. Repeatable.")] = None,
    at: Annotated[str, typer.Option(help="Shares of the steps after which to look.")] = "0.25,0.5,1.0",
    size: Annotated[str | None, typer.Option(help="Pixels; the size of the model's training if not given.")] = None,
    model: Annotated[
        str | None, typer.Option(help="`demo`, a diffusers folder, a .safetensors file or a hub id.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all randomness; -1 draws one.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is off.")] = None,
    model_config: ModelConfig = None,
    sets: Sets = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    verbose: Verbose = False,
) -> None:
    """Draw where a mask source looks, over the steps of one small picture."""
    from vitrail.cli import heatmap

    given = {
        "prompt": prompt,
        "model": model,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "model_config": model_config,
        "dtype": dtype,
    }
    configure_logging(verbose)
    wanted = heatmap.Wanted(
        masking=masking,
        words=words or (),
        at=heatmap.read_shares(at),
        sets=sets or (),
        output=output,
        force=force,
        device=device,
    )
    heatmap.heatmap({name: value for name, value in given.items() if value is not None}, size, wanted)


def timeline(
    traces: Annotated[list[Path], typer.Argument(help="Files that `vitrail sample --trace` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.")] = Path("timeline.png"),
    label: Annotated[list[str] | None, typer.Option(help="What to call each trace; its name if not given.")] = None,
) -> None:
    """Draw what every rank did when, one trace above the other."""
    from vitrail.cli import preparation as commands

    commands.draw_timeline(traces, label or [], output)


def methods() -> None:
    """List methods and strategies, with options."""
    from vitrail.cli import preparation as commands

    commands.show_methods()


def plugins() -> None:
    """List plugins with what each adds."""
    from vitrail.cli import preparation as commands

    commands.show_plugins()


def check(
    file: Annotated[Path, typer.Argument(help="A method, a run or an experiment, as TOML or YAML.")],
    sets: Sets = None,
) -> None:
    """Check a file; loads no model."""
    from vitrail.cli import preparation as commands

    commands.check(file, sets or ())


def add_commands(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (heatmap, timeline, methods, plugins, check):
        app.command()(command)
