"""Train the demo model: ``python -m training STAGE``, from the repository's root; see ``--help``."""

import signal
import threading
from collections.abc import Callable
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
SHIPPED = Path("src/vitrail/demo/model")


@app.callback()
def main() -> None:
    """Train the demo model stage by stage; Ctrl-C and SIGTERM write a checkpoint first."""


def autoencoder(settings: knobs.Settings, device: torch.device) -> tuple[Task, knobs.LoopSettings]:
    """Stage one: the AutoencoderKL."""
    from training.autoencoder import AutoencoderTask

    return AutoencoderTask(settings.autoencoder), settings.autoencoder.loop


def judge(settings: knobs.Settings, device: torch.device) -> tuple[Task, knobs.LoopSettings]:
    """Stage two: the detector that counts objects."""
    from training.detector import JudgeTask

    return JudgeTask(settings.judge, device), settings.judge.loop


def denoiser(settings: knobs.Settings, device: torch.device) -> tuple[Task, knobs.LoopSettings]:
    """Stage three: text encoder and U-Net."""
    from training.denoiser import DenoiserTask

    return DenoiserTask(settings.denoiser, device), settings.denoiser.loop


def _add_stage(stage: Callable[[knobs.Settings, torch.device], tuple[Task, knobs.LoopSettings]]) -> None:
    """Add the command that trains a network, with the options common to all."""
    name = stage.__name__

    def command(
        folder: Folder = RUNS,
        minutes: Minutes = None,
        device: Device = "cpu",
        threads: Threads = 1,
        precision: Precision = "measured",
        changes: Changes = None,
    ) -> None:
        torch.set_num_threads(threads)
        place = torch.device(device)
        task, loop = stage(knobs.load(changes=tuple(f"{name}.{change}" for change in changes or ())), place)
        budget = Budget(folder=folder / name, device=place, minutes=minutes, precision=precision)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        reached = train(task, loop, budget, stop.is_set)
        typer.echo(f"{name}: step {reached} of {loop.num_steps}; weights in {budget.folder / 'weights'}")

    app.command(name, help=stage.__doc__)(command)


for each in (autoencoder, judge, denoiser):
    _add_stage(each)


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
