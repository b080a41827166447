"""The command line, where errors become exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vitrail.cli import experiment_options as cli_experiments
from vitrail.cli import inspection as cli_inspection
from vitrail.cli.console import printable, replace_unknown_signs
from vitrail.cli.options import (
    Checkpoint,
    Comm,
    Device,
    Dtype,
    Every,
    Force,
    Image,
    Method,
    ModelConfig,
    Output,
    Plugin,
    Ranks,
    Revision,
    Sets,
    Speeds,
    Timeout,
    Trace,
    Variant,
    Verbose,
    configure_logging,
)
from vitrail.cli.signals import INTERRUPTED, UNTOLD, ended_at_once
from vitrail.comm.lifeline import hold
from vitrail.core.config import atomic
from vitrail.core.engine.forwarding import REMEDIES, is_out_of_memory
from vitrail.errors import Interrupted, VitrailError

app = typer.Typer(
    name="vitrail",
    help="Sample large pictures from diffusion models that were trained on small ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def sample(
    prompt: Annotated[str | None, typer.Argument(help="One sentence.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels: 512, or 768x512 for width x height.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    method: Method = None,
    model: Annotated[
        str | None, typer.Option(help="`demo`, a diffusers folder, a .safetensors file or a hub id.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all randomness; -1 draws one and shows it.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is off.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the picture should not show.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="A diffusers scheduler class.")] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures; picture i has seed + i.")] = None,
    row_batch: Annotated[
        int | None, typer.Option(help="Views x guidance branches a forward; chosen by the memory if not given.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="A forward that does not fit: auto cuts it, fixed refuses.")
    ] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="Share of the guided contrast that is undone.")] = None,
    image: Image = None,
    strength: Annotated[float | None, typer.Option(help="With --image: share of the steps that change it.")] = None,
    wrap: Annotated[str | None, typer.Option(help="Axes on which the edges meet: none, x, y or xy.")] = None,
    model_config: ModelConfig = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Annotated[Path | None, typer.Option(help="TOML or YAML file with the same words; flags win.")] = None,
    sets: Sets = None,
    output: Output = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    ranks: Ranks = None,
    comm: Comm = None,
    timeout: Timeout = 300.0,
    speeds: Speeds = None,
    checkpoint: Checkpoint = None,
    checkpoint_every: Every = 5,
    trace: Trace = None,
    plugin: Plugin = None,
    verbose: Verbose = False,
) -> None:
    """One sentence, one large picture."""
    from vitrail.cli import preparation as commands
    from vitrail.cli import rendering
    from vitrail.sampling.run_plugins import load_plugins  # the function is long because every option is a parameter

    given = {
        "prompt": prompt,
        "height": height,
        "width": width,
        "method": method,
        "model": model,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "scheduler": scheduler,
        "num_images": num_images,
        "row_batch": row_batch,
        "memory": memory,
        "dtype": dtype,
        "variant": variant,
        "revision": revision,
        "model_config": model_config,
        "guidance_rescale": guidance_rescale,
        "image": image,
        "strength": strength,
        "wrap": wrap,
    }
    run, composition = commands.prepare({k: v for k, v in given.items() if v is not None}, size, config, sets or ())
    configure_logging(verbose)
    options = rendering.RenderOptions(
        output=output,
        force=force,
        device=device,
        dry_run=dry_run,
        ranks=commands.rank_options(ranks, comm, timeout, speeds),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        trace=trace,
        plugins=load_plugins(plugin or ()),
    )
    rendering.sample(run, composition, options)


@app.command()
def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that vitrail wrote.")],
    model: Annotated[str | None, typer.Option(help="Where the model is; needed if it is a file or folder.")] = None,
    model_config: ModelConfig = None,
    variant: Variant = None,
    revision: Revision = None,
    image: Image = None,
    sets: Sets = None,
    output: Output = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    ranks: Ranks = None,
    comm: Comm = None,
    plugin: Plugin = None,
    verbose: Verbose = False,
) -> None:
    """Make a picture again from the recipe inside it."""
    from vitrail.cli import preparation as commands
    from vitrail.cli import rendering
    from vitrail.sampling.run_plugins import attached, load_plugins, wrapping

    changes = {"model": model, "model_config": model_config, "image": image, "dtype": dtype}
    changes |= {"variant": variant, "revision": revision}
    given = {name: value for name, value in changes.items() if value is not None}
    run, composition, recipe = commands.replayed(picture, sets or (), given)
    configure_logging(verbose)
    rank_options = commands.rank_options(ranks, comm)
    plugins = load_plugins(plugin or ())
    options = rendering.RenderOptions(output=output, force=force, device=device, ranks=rank_options, plugins=plugins)
    rendering.sample(run, composition, options, recipe.changes(wrapping(attached(plugins))))


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(help="Latents that vitrail kept: NAME.latents.safetensors.")],
    model: Annotated[str | None, typer.Option(help="Where the model is; needed if it is a file or folder.")] = None,
    model_config: ModelConfig = None,
    variant: Variant = None,
    revision: Revision = None,
    output: Output = None,
    force: Force = False,
    device: Device = None,
    dtype: Dtype = None,
    verbose: Verbose = False,
) -> None:
    """Make the picture of latents that could not be decoded when they were sampled."""
    from vitrail.sampling import kept_latents

    changes = {"model": model, "model_config": model_config, "dtype": dtype}
    changes |= {"variant": variant, "revision": revision}
    configure_logging(verbose)
    kept_latents.decode(file, output, force, device, {k: v for k, v in changes.items() if v is not None})


for commands in (cli_inspection, cli_experiments):
    commands.add_commands(app)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Sample large pictures from diffusion models that were trained on small ones."""
    if version:
        from importlib import metadata

        typer.echo(f"vitrail {metadata.version('vitrail')}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line: 0 done, 1 a bug or a failed run, 2 the user's mistake, 130 interrupted."""
    replace_unknown_signs()
    try:
        with ended_at_once():
            hold(atomic.discard)
            code: Any = app(standalone_mode=False)
    except VitrailError as error:
        from vitrail.cli.ranks import end_rank, teller

        code = INTERRUPTED if isinstance(error, Interrupted) else 2 if isinstance(error, ValueError) else 1
        who = teller(error)
        if who == "me":
            typer.echo(printable(f"Error: {error}"), err=True)
        end_rank(UNTOLD if who == "launcher" else code)
    except Exception as error:
        _report(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _report(error: Exception) -> NoReturn:
    """Usage errors as typer shows them; anything else is a bug and keeps its trace."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
        raise SystemExit(getattr(error, "exit_code", 2))
    if _is_shortage(error):
        reason = str(error).partition("\n")[0] or type(error).__name__
        typer.echo(printable(f"Error: out of memory: {reason}; free some, or try {REMEDIES}"), err=True)
        raise SystemExit(1)
    if type(error).__name__ == "Abort":  # how typer passes KeyboardInterrupt on
        typer.echo("Stopped; files that were complete are kept.", err=True)
        raise SystemExit(INTERRUPTED)
    raise error


def _is_shortage(error: Exception) -> bool:
    """Whether memory ran out; only torch knows how it says so, and it may be what could not be imported."""
    if isinstance(error, MemoryError):
        return True
    try:
        return is_out_of_memory(error)
    except ImportError:
        return False


__all__ = ["app", "main"]
