"""The command line. The only place that configures logging, and that turns errors into exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vitrail.cli_experiments import add_commands
from vitrail.errors import VitrailError

app = typer.Typer(
    name="vitrail",
    help="Sample large pictures from diffusion models that were trained on small ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
Method = Annotated[str | None, typer.Option("--method", "-m", help="A method's name or a TOML or YAML file.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the method, e.g. stages.0.guidance.0.scale=2. Repeatable."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="PNG file; named after the prompt if not given.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every event to the terminal.")]
Device = Annotated[str | None, typer.Option(help="A torch device; the accelerator if there is one, else the CPU.")]
Dtype = Annotated[str | None, typer.Option(help="Of the networks: float32, bfloat16 or float16.")]
Image = Annotated[str | None, typer.Option(help="A picture to start from, enlarged to the size.")]
ModelConfig = Annotated[str | None, typer.Option(help="What a single file is read as: a family or a diffusers folder.")]
Variant = Annotated[str | None, typer.Option(help="Of the weight files, e.g. fp16.")]
Revision = Annotated[str | None, typer.Option(help="Of a model on the hub.")]
Ranks = Annotated[int | None, typer.Option(help="Processes that share the work; the picture stays the same.")]
Comm = Annotated[str | None, typer.Option(help="How ranks talk: gloo, nccl, in-process; gloo or nccl by the device.")]
Timeout = Annotated[float, typer.Option(help="Seconds that a rank waits for another before the run ends.")]
Speeds = Annotated[str | None, typer.Option(help="Relative speeds of the ranks, e.g. 1,1,0.5.")]
Checkpoint = Annotated[Path | None, typer.Option(help="File to write as the run goes, and to go on from.")]
Every = Annotated[int, typer.Option("--checkpoint-every", help="Steps between two writes of the checkpoint.")]
Trace = Annotated[Path | None, typer.Option(help="JSON file for what every rank did when.")]


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
    verbose: Verbose = False,
) -> None:
    """One sentence, one large picture."""
    from vitrail import commands, rendering  # the function is long because every option is a parameter

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
    _configure_logging(verbose)
    options = rendering.RenderOptions(
        output=output,
        force=force,
        device=device,
        dry_run=dry_run,
        ranks=commands.rank_options(ranks, comm, timeout, speeds),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        trace=trace,
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
    verbose: Verbose = False,
) -> None:
    """Make a picture again from the recipe inside it."""
    from vitrail import commands, rendering

    changes = {"model": model, "model_config": model_config, "image": image, "dtype": dtype}
    changes |= {"variant": variant, "revision": revision}
    given = {name: value for name, value in changes.items() if value is not None}
    run, composition, recipe = commands.replayed(picture, sets or (), given)
    _configure_logging(verbose)
    rank_options = commands.rank_options(ranks, comm)
    options = rendering.RenderOptions(output=output, force=force, device=device, ranks=rank_options)
    rendering.sample(run, composition, options, recipe.changes())


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
    from vitrail import kept_latents

    changes = {"model": model, "model_config": model_config, "dtype": dtype}
    changes |= {"variant": variant, "revision": revision}
    _configure_logging(verbose)
    kept_latents.decode(file, output, force, device, {k: v for k, v in changes.items() if v is not None})


@app.command()
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
    from vitrail import heatmap

    given = {
        "prompt": prompt,
        "model": model,
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "model_config": model_config,
        "dtype": dtype,
    }
    _configure_logging(verbose)
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


@app.command()
def timeline(
    traces: Annotated[list[Path], typer.Argument(help="Files that `vitrail sample --trace` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file.")] = Path("timeline.png"),
    label: Annotated[list[str] | None, typer.Option(help="What to call each trace; its name if not given.")] = None,
) -> None:
    """Draw what every rank did when, one trace above the other."""
    from vitrail import commands

    commands.draw_timeline(traces, label or [], output)


@app.command()
def methods() -> None:
    """List methods and strategies, with options."""
    from vitrail import commands

    commands.show_methods()


@app.command()
def plugins() -> None:
    """List plugins with what each adds."""
    from vitrail import commands

    commands.show_plugins()


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A method, a run or an experiment, as TOML or YAML.")],
    sets: Sets = None,
) -> None:
    """Check the file of a method, a run or an experiment; loads no model."""
    from vitrail import commands

    commands.check(file, sets or ())


add_commands(app)


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Sample large pictures from diffusion models that were trained on small ones."""
    if version:
        from importlib import metadata

        typer.echo(f"vitrail {metadata.version('vitrail')}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line: 0 done, 1 a bug or a failed run, 2 the user's mistake, 130 interrupted."""
    before = signal.signal(signal.SIGINT, _stop_now)
    try:
        code: Any = app(standalone_mode=False)
    except VitrailError as error:
        from vitrail.ranks import end_rank, is_told_by_launcher

        if not is_told_by_launcher(error):
            typer.echo(f"Error: {error}", err=True)
        code = 2 if isinstance(error, ValueError) else 1
        end_rank(code)
    except Exception as error:
        _report(error)
    finally:
        signal.signal(signal.SIGINT, before)
    raise SystemExit(code if isinstance(code, int) else 0)


def _stop_now(*_: object) -> NoReturn:
    """Ctrl-C while nothing is at stake: libraries that are being imported would turn an exception into others."""
    os.write(2, b"Stopped; nothing was written.\n")
    os._exit(130)


def _report(error: Exception) -> NoReturn:
    """Usage errors as typer shows them; anything else is a bug and keeps its trace."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
        raise SystemExit(getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":
        raise SystemExit(130)
    raise error


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is at the time, so that a progress bar can make room."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _configure_logging(verbose: bool) -> None:
    import structlog

    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[_Stderr()])
    logging.getLogger("vitrail").setLevel(logging.DEBUG if verbose else logging.WARNING)
    console = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer(colors=True) if console else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            renderer,
        ]
    )


__all__ = ["app", "main"]
