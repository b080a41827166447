"""Train the demo model: autoencoder, judge, denoiser. One command, seeded, resumable.

Usage: python tools/train_demo_model.py STAGE --folder runs/demo
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from training.loop import LoopConfig

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """Train the demo model stage by stage."""


Folder = Annotated[Path, typer.Option(help="Where checkpoints and logs are kept.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]


@app.command()
def autoencoder(folder: Folder = Path("runs/demo"), steps: int = 2400, threads: Threads = 2) -> None:
    """Stage one: the AutoencoderKL."""
    from training.autoencoder import train_autoencoder

    torch.set_num_threads(threads)
    train_autoencoder(folder, LoopConfig(num_steps=steps, learning_rate=6e-4, warmup_steps=60, ema=0.995))


@app.command()
def judge(
    folder: Folder = Path("runs/demo"),
    output: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("src/vitrail/backbones/demo/judge"),
    steps: int = 6000,
    threads: Threads = 2,
) -> None:
    """Stage two: the detector that counts objects; sees softened pictures if stage one is done."""
    from training.detector import train_judge

    torch.set_num_threads(threads)
    train_judge(folder, output, LoopConfig(num_steps=steps, learning_rate=2e-3))


@app.command()
def denoiser(folder: Folder = Path("runs/demo"), steps: int = 24000, threads: Threads = 2) -> None:
    """Stage three: text encoder and U-Net."""
    from training.denoiser import train_denoiser

    torch.set_num_threads(threads)
    train_denoiser(folder, LoopConfig(num_steps=steps, learning_rate=8e-4))


@app.command()
def package(
    folder: Folder = Path("runs/demo"),
    target: Path = Path("src/vitrail/backbones/demo/model"),
    notes: Annotated[str, typer.Option(help="Measured results, for the model card.")] = "",
) -> None:
    """Stage four: write the folder that ships."""
    from training.package import package as write

    write(folder, target, notes)


if __name__ == "__main__":
    app()
