"""Measure a run with a compiled network against the same run without, and what compiling takes.

Usage: python benchmarks/compiled.py [--size 256] [--steps 10] [--repeats 3] [--method multidiffusion]

The first compiled run makes the graphs; its time above that of the later ones is what compiling takes. After it, runs
with and without alternate, and the ratio is that of their medians, all in one process with one thread. Compiled code
that torch has kept on disk would not be made again, so it is kept in a folder of this run's own.
"""

import os
import statistics
import tempfile
import time

import torch
import typer
from rich.console import Console
from rich.table import Table

from vitrail.core.config.run_config import RunConfig
from vitrail.core.engine.compiling import graphs_of
from vitrail.experiments.run.origin import commit_of_vitrail, machine
from vitrail.sampling.sampler import Sampler

PROMPT = "a fox on a snow field"
ROW_BATCH = 4


def run(sampler: Sampler, config: RunConfig) -> tuple[float, torch.Tensor]:
    """Return the seconds of a run without decoding, and its latents.

    Args:
        sampler: The sampler.
        config: The run.
    """
    begin = time.perf_counter()
    latents = sampler.run(config, output_type="latent").latents
    return time.perf_counter() - begin, latents


def main(size: int = 256, steps: int = 10, repeats: int = 3, method: str = "multidiffusion") -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    sampler = Sampler.from_pretrained("demo", method)
    given = {"height": size, "width": size, "num_inference_steps": steps, "row_batch": ROW_BATCH}
    plain, compiled = (RunConfig(prompt=PROMPT, compile=option, **given) for option in (False, True))
    run(sampler, plain)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        first, _ = run(sampler, compiled)
        pairs = [(run(sampler, plain), run(sampler, compiled)) for _ in range(repeats)]
    without, with_code = (statistics.median(each[side][0] for each in pairs) for side in (0, 1))
    (_, own), (_, other) = pairs[-1]
    graphs = len(graphs_of(sampler.run_plan(plain, 0), ROW_BATCH).shapes)
    table = Table("what", "value", box=None, header_style="bold")
    table.add_row("without, s", f"{without:.2f}")
    table.add_row("compiled, s", f"{with_code:.2f}")
    table.add_row("ratio", f"{without / with_code:.2f}")
    table.add_row("compiling, s", f"{first - with_code:.1f}")
    table.add_row("graphs", f"{graphs}")
    table.add_row("largest difference of latents", f"{float((own - other).abs().max()):.1e}")
    console = Console(width=120)
    setting = f"{method}, {size}x{size}, {steps} steps, {repeats} repeats"
    console.print(f"{setting}, {machine(torch.device('cpu'))}, torch {torch.__version__}, {commit_of_vitrail()}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
