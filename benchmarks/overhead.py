"""What the engine costs beside the network: shares of one run, each part timed where it happens.

Usage: python benchmarks/overhead.py [--size 512] [--steps 30] [--threads 2] [--method asg]

The parts of one 512x512 run: all that is outside the network's forwards; the mask's side computation,
which lies inside them, with the reduction of the maps; the exchange of values among views, drawing the
permutation included. The mask and the exchange are held against the same run without them, that is, the
run's time less their own. Comparing two whole runs instead would measure how busy the machine is.
"""

import functools
import platform
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

PROMPT = "a fox on a snow field"
PARTS = {  # part: functions whose time it is, none of which calls another of them
    "forwards": ["vitrail.core.engine.hooks.Stages.predict"],
    "mask": [
        "vitrail.backbones.attention.cross_attention.Maps.look",
        "vitrail.backbones.attention.cross_attention.Maps.mean",
        "vitrail.core.engine.hooks.Stages.mask",
    ],
    "exchange": [
        "vitrail.core.engine.micro_batches.permute_views",
        "vitrail.core.engine.micro_batches.restore_order",
        "vitrail.plugins.patching.lattice.Lattice._order",
    ],
}


def timed(function, part, spent):
    """The function, with its time added to a part."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - begin

    return wrapper


def resolve(path):
    """What a dotted path names."""
    for split in range(path.count("."), 0, -1):
        module, names = ".".join(path.split(".")[:split]), path.split(".")[split:]
        try:
            found = __import__(module, fromlist=["_"])
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, names, found)
    raise LookupError(path)


def run(sampler, size, steps) -> dict[str, float]:
    """Seconds of the loop and of every part, without decoding."""
    spent = Counter()
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for path in functions:
                stack.enter_context(patch(path, timed(resolve(path), part, spent)))
        report = sampler(PROMPT, height=size, width=size, num_inference_steps=steps, output_type="latent").report
    return dict(spent) | {"loop": report.engine_s}


def main(
    size: int = 512,
    steps: int = 30,
    method: str = "asg",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    sampler = Sampler(Sampler.from_pretrained("demo", method).backbone, load_method(method), model="demo")
    run(sampler, size, 2)
    spent = run(sampler, size, steps)
    loop = spent["loop"]
    table = Table("what", "seconds", "share", "bound", box=None, header_style="bold")
    outside = loop - spent["forwards"]
    rows = (
        ("the loop", loop, None, ""),
        ("outside the network's forwards", outside, outside / loop, "5 %"),
        ("mask capture", spent["mask"], spent["mask"] / (loop - spent["mask"]), "3 %"),
        ("exchange of values", spent["exchange"], spent["exchange"] / (loop - spent["exchange"]), "1 %"),
    )
    for name, seconds, share, bound in rows:
        table.add_row(name, f"{seconds:.2f}", "" if share is None else f"{100 * share:.2f} %", bound)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = platform.processor() or platform.machine()
    console = Console(width=120)
    setting = f"{method}, {size}x{size}, {steps} steps, {threads} threads"
    console.print(f"{setting}, {machine}, torch {torch.__version__}, {commit}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
