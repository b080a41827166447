"""Measure the engine's overhead beside the network: shares of one run by part.

Usage: python benchmarks/overhead.py [--size 512] [--steps 30] [--threads 1] [--method asg]

The parts of one 512x512 run: all outside of the network's forwards; the computation of the mask inside of them
and the reduction of its maps; the swap of values between lattice views, including the permutation. Mask and
swap are given as shares of the run's time without them. Comparing two whole runs instead would mostly measure
other load of the machine.
"""

import functools
import time
from collections import Counter
from contextlib import ExitStack
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from vitrail.experiments.run.origin import commit_of_vitrail, machine
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

PROMPT = "a fox on a snow field"
PARTS = {  # functions of each part, none of which calls another one
    "forwards": ["vitrail.core.engine.network.Network.predict"],
    "mask": [
        "vitrail.backbones.attention.cross_attention.Maps.look",
        "vitrail.backbones.attention.cross_attention.Maps.mean",
        "vitrail.core.engine.hooks.Hooks.mask",
    ],
    "exchange": [
        "vitrail.core.engine.micro_batches.permute_views",
        "vitrail.core.engine.micro_batches.restore_order",
        "vitrail.plugins.patching.lattice.Lattice._order",
    ],
}


def timed(function, part, spent):
    """Wrap a function so that its time is added to a part.

    Args:
        function: The function.
        part: Name of the part.
        spent: Seconds by part.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.perf_counter() - begin

    return wrapper


def resolve(path):
    """Return the object that a dotted path names.

    Raises:
        LookupError: If no prefix of the path is a module.
    """
    for split in range(path.count("."), 0, -1):
        module, names = ".".join(path.split(".")[:split]), path.split(".")[split:]
        try:
            found = __import__(module, fromlist=["_"])
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, names, found)
    raise LookupError(path)


def run(sampler, size, steps) -> dict[str, float]:
    """Measure the seconds of the loop and of every part, without decoding.

    Args:
        sampler: The sampler.
        size: Side of the picture in pixels.
        steps: Sampling steps.
    """
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
    threads: Annotated[
        int, typer.Option(help="CPU threads; more than one run forwards side by side, which no share can show.")
    ] = 1,
) -> None:
    """Measure one run and print the table."""
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
    console = Console(width=120)
    setting = f"{method}, {size}x{size}, {steps} steps, {threads} threads"
    console.print(f"{setting}, {machine(torch.device('cpu'))}, torch {torch.__version__}, {commit_of_vitrail()}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
