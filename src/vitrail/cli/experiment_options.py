"""The commands of experiments: ``run``, ``report`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitrail.cli.options import Device, Plugin, Verbose, configure_logging

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value of the file, e.g. sizes.0.pictures=8. Repeatable."),
]
Measured = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override what is measured, e.g. resamples=0 or metrics=['seams']. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The experiment's folder; runs/NAME if not given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]


def run(
    file: Annotated[Path, typer.Argument(help="An experiment as TOML or YAML.")],
    sets: Sets = None,
    out: Out = None,
    shard: Annotated[str, typer.Option(help="i/n: this process's share of the cells, from 0/n on.")] = "0/1",
    executor: Annotated[str, typer.Option(help="Who samples: here, or ray for the actors of a Ray cluster.")] = "here",
    workers: Annotated[int, typer.Option(min=0, help="Actors of the cluster; 0 for as many as it has room for.")] = 0,
    device: Device = None,
    dry_run: DryRun = False,
    plugin: Plugin = None,
    verbose: Verbose = False,
) -> None:
    """Sample what is missing of an experiment."""
    from vitrail.cli import run as commands
    from vitrail.cli.execution import Shard

    options = commands.RunOptions(
        out=out or Path("runs") / file.stem,
        sets=sets or (),
        shard=Shard.read(shard),
        executor=commands.executor_name(executor),
        workers=workers,
        device=device,
        dry_run=dry_run,
        plugins=plugin or (),
    )
    configure_logging(verbose)
    commands.run(file, options)


def report(
    folders: Annotated[list[Path], typer.Argument(help="An experiment's folder, or several to be merged into --out.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to merge into; the folder itself.")] = None,
    baseline: Annotated[str | None, typer.Option(help="The row that others are compared with; the first.")] = None,
    sets: Measured = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw plots, which needs matplotlib.")] = True,
    costs: Annotated[bool, typer.Option("--costs/--no-costs", help="Tell of time, evaluations and memory.")] = True,
) -> None:
    """Measure an experiment and write its tables and page."""
    from vitrail.cli import report as reporting

    configure_logging(verbose=False)
    reporting.report(folders, out, baseline=baseline, sets=sets or (), plots=plots, costs=costs)


def compare(
    prompt: Annotated[str, typer.Argument(help="One sentence.")],
    methods: Annotated[
        str, typer.Option(help="Names or files, separated by commas.")
    ] = "direct,multidiffusion,asg-plus",
    size: Annotated[str, typer.Option(help="Pixels: 512, or 768x512; or 2x for times the training size.")] = "2x",
    model: Annotated[str, typer.Option(help="`demo`, a diffusers folder, a .safetensors file or a hub id.")] = "demo",
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", "--num-inference-steps", help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is off.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; named after the prompt.")] = None,
    device: Device = None,
    verbose: Verbose = False,
) -> None:
    """One prompt by several methods, on one sheet."""
    from vitrail.cli import compare as comparing

    given = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    wanted = comparing.Wanted(
        prompt=prompt,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        size=size,
        model=model,
        seed=seed,
        run={name: value for name, value in given.items() if value is not None},
        out=out,
        device=device,
    )
    configure_logging(verbose)
    comparing.compare(wanted)


def add_commands(app: typer.Typer) -> None:
    """Make them commands of the command line."""
    for command in (run, report, compare):
        app.command()(command)
