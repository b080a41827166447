"""What the engine costs beside the network: ratios within one run.

Usage: python benchmarks/overhead.py [--size 512] [--steps 10] [--threads 2]

Three ratios of a 512x512 ASG run: time outside the network's forwards over the whole loop; the cost of the
mask's side computation; the cost of the permutation of values. The last two are the median of paired runs
that alternate, so that a busy machine slows both alike.
"""

import platform
import statistics
import subprocess
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from vitrail.core.hookspecs import hookimpl
from vitrail.methods import load_method
from vitrail.sampler import Sampler

PROMPT = "a fox on a snow field"


class Stopwatch:
    """Seconds spent in one exclusive stage, by wrapping it."""

    def __init__(self):
        self.spent = 0.0

    @hookimpl(wrapper=True)
    def vitrail_predict(self):
        begin = time.perf_counter()
        answer = yield
        self.spent += time.perf_counter() - begin
        return answer


def loop_seconds(backbone, size, steps, *sets) -> tuple[float, float]:
    """(whole loop, forwards) of one run, without decoding."""
    watch = Stopwatch()
    sampler = Sampler(backbone, load_method("asg", sets), model="demo", plugins=[("stopwatch", watch)])
    report = sampler(PROMPT, height=size, width=size, num_inference_steps=steps, output_type="latent").report
    return report.engine_s, watch.spent


def paired(backbone, size, steps, sets, repeats) -> tuple[float, float]:
    """Medians over alternating runs: (share outside the network, ratio of the default to ``sets``)."""
    outside, ratios = [], []
    for _ in range(repeats):
        total, forwards = loop_seconds(backbone, size, steps)
        without, _ = loop_seconds(backbone, size, steps, *sets)
        outside.append(1 - forwards / total)
        ratios.append(total / without)
    return statistics.median(outside), statistics.median(ratios)


def main(
    size: int = 512,
    steps: int = 10,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    repeats: int = 5,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    backbone = Sampler.from_pretrained("demo", "asg").backbone
    loop_seconds(backbone, size, 2)
    outside, mask = paired(backbone, size, steps, ["stages.0.masking=none"], repeats)
    _, exchange = paired(backbone, size, steps, ["stages.0.patching.interaction=none"], repeats)
    table = Table("what", "share", "bound", box=None, header_style="bold")
    table.add_row("time outside the network's forwards", f"{100 * outside:.1f} %", "5 %")
    table.add_row("mask capture, against the run without it", f"{100 * (mask - 1):+.1f} %", "3 %")
    table.add_row("permutation of values, against the run without it", f"{100 * (exchange - 1):+.1f} %", "1 %")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    console = Console(width=120)
    console.print(
        f"{size}x{size}, {steps} steps, {threads} threads, {platform.processor() or platform.machine()}, {commit}"
    )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
