"""``vitrail sample``: sample large pictures of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import (
    Checkpoint,
    Comm,
    Compile,
    Device,
    Dtype,
    Every,
    Exchange,
    Force,
    Image,
    Method,
    ModelConfig,
    Output,
    Plugin,
    Preview,
    PreviewEvery,
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
    region: Annotated[
        list[str] | None,
        typer.Option(help='A box with a prompt of its own, in shares: "0,0,0.5,1: a red fox". Repeatable.'),
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="A diffusers scheduler class.")] = None,
    eta: Annotated[
        float | None, typer.Option(help="Share of DDPM's noise in the steps of DDIM; refused where it is not taken.")
    ] = None,
    solver_arg: Annotated[
        list[str] | None, typer.Option(help="What else the scheduler's step takes, NAME=NUMBER. Repeatable.")
    ] = None,
    num_images: Annotated[int | None, typer.Option(help="Pictures; picture i has seed + i.")] = None,
    row_batch: Annotated[
        int | None, typer.Option(help="Views x guidance branches a forward; chosen by the memory if not given.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="A forward that does not fit: auto cuts it, fixed refuses.")
    ] = None,
    compiled: Compile = None,
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
    exchange: Exchange = "barrier",
    checkpoint: Checkpoint = None,
    checkpoint_every: Every = 5,
    trace: Trace = None,
    preview: Preview = None,
    preview_every: PreviewEvery = 5,
    plugin: Plugin = None,
    verbose: Verbose = False,
) -> None:
    """One sentence, one large picture."""
    from vitrail.cli import arguments, rendering
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
        "regions": [arguments.parse_region(text) for text in region] if region else None,
        "scheduler": scheduler,
        "eta": eta,
        "solver_args": arguments.numbers("--solver-arg", solver_arg) if solver_arg else None,
        "num_images": num_images,
        "row_batch": row_batch,
        "memory": memory,
        "compile": compiled,
        "dtype": dtype,
        "variant": variant,
        "revision": revision,
        "model_config": model_config,
        "guidance_rescale": guidance_rescale,
        "image": image,
        "strength": strength,
        "wrap": wrap,
    }
    run, composition = arguments.prepare({k: v for k, v in given.items() if v is not None}, size, config, sets or ())
    configure_logging(verbose)
    options = rendering.RenderOptions(
        output=output,
        force=force,
        device=device,
        dry_run=dry_run,
        ranks=arguments.rank_options(ranks, comm, timeout, speeds, exchange),
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        trace=trace,
        preview=preview,
        preview_every=preview_every,
        plugins=load_plugins(plugin or ()),
    )
    rendering.sample(run, composition, options)
