"""Train the demo model: ``python -m training STAGE``, from the repository's root; see ``--help``."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import torch
import typer

from training import settings as knobs
from training.loop import Budget, Task, train

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Folder = Annotated[Path, typer.Option(help="Where checkpoints, logs and samples of all stages are kept.")]
Minutes = Annotated[float | None, typer.Option(help="Stop after so long; the same command goes on from there.")]
Device = Annotated[str, typer.Option(help="As torch names it.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, or measured: the faster one.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of settings.toml, e.g. loop.num_steps=9.")]
RUNS = Path("runs/training")
SHIPPED = Path("src/vitrail/backbones/demo/model")


@app.callback()
def main() -> None:
    """Train the demo model stage by stage; Ctrl-C and SIGTERM write a checkpoint first."""


def _run(stage: str, task: Task, loop: knobs.LoopSettings, budget: Budget) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    reached = train(task, loop, budget, stop.is_set)
    typer.echo(f"{stage}: step {reached} of {loop.num_steps}; weights in {budget.folder / 'weights'}")


def _settings(stage: str, changes: list[str] | None) -> knobs.Settings:
    return knobs.load(changes=tuple(f"{stage}.{change}" for change in changes or ()))


@app.command()
def autoencoder(
    folder: Folder = RUNS,
    minutes: Minutes = None,
    device: Device = "cpu",
    threads: Threads = 1,
    precision: Precision = "measured",
    changes: Changes = None,
) -> None:
    """Stage one: the AutoencoderKL."""
    from training.autoencoder import AutoencoderTask

    torch.set_num_threads(threads)
    settings = _settings("autoencoder", changes).autoencoder
    budget = Budget(folder=folder / "autoencoder", device=torch.device(device), minutes=minutes, precision=precision)
    _run("autoencoder", AutoencoderTask(settings), settings.loop, budget)


@app.command()
def judge(
    folder: Folder = RUNS,
    minutes: Minutes = None,
    device: Device = "cpu",
    threads: Threads = 1,
    precision: Precision = "measured",
    changes: Changes = None,
) -> None:
    """Stage two: the detector that counts objects."""
    from training.detector import JudgeTask

    torch.set_num_threads(threads)
    settings = _settings("judge", changes).judge
    budget = Budget(folder=folder / "judge", device=torch.device(device), minutes=minutes, precision=precision)
    _run("judge", JudgeTask(settings, budget.device), settings.loop, budget)


@app.command()
def denoiser(
    folder: Folder = RUNS,
    minutes: Minutes = None,
    device: Device = "cpu",
    threads: Threads = 1,
    precision: Precision = "measured",
    changes: Changes = None,
) -> None:
    """Stage three: text encoder and U-Net."""
    from training.denoiser import DenoiserTask

    torch.set_num_threads(threads)
    settings = _settings("denoiser", changes).denoiser
    budget = Budget(folder=folder / "denoiser", device=torch.device(device), minutes=minutes, precision=precision)
    _run("denoiser", DenoiserTask(settings, budget.device), settings.loop, budget)


@app.command()
def package(
    folder: Folder = RUNS,
    target: Annotated[Path, typer.Option(help="The folder that ships.")] = SHIPPED,
    notes: Annotated[str, typer.Option(help="Measured results, for the model card.")] = "",
) -> None:
    """Write the averaged weights of all stages as the model that ships."""
    from training.package import package as write

    write(folder, target, notes)


@app.command()
def page(folder: Folder = RUNS) -> None:
    """Draw the logs' curves and put them and the samples over time on one page, ``index.html``."""
    from training.page import write_page

    typer.echo(write_page(folder))


if __name__ == "__main__":
    app()
