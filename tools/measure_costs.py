"""Compare the planned with the counted network evaluations and VAE calls, for every method at three sizes.

Usage: python tools/measure_costs.py --out docs/results/costs.md

The runs are short, ``--steps`` steps on the demo model, since counts do not depend on the quality of a picture.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from vitrail.core.config.run_config import RunConfig
from vitrail.sampling.discovery import registry
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

SIZES = ((256, 256), (200, 384), (384, 384))  # height and width in pixels
HEAD = [
    "method",
    "size",
    "evaluations",
    "counted",
    "decodes",
    "counted",
    "encodes",
    "counted",
    "gradients",
    "counted",
    "of one view",
    "seconds",
]


def row_of(sampler: Sampler, method: str, height: int, width: int, steps: int) -> tuple[list[str], bool]:
    """Run a method once, and compare plan and counts.

    Args:
        sampler: Sampler of the method.
        method: Name of the method.
        height: In pixels.
        width: In pixels.
        steps: Sampling steps.

    Returns:
        A line of the table, and whether plan and counts agree.
    """
    config = RunConfig(prompt="a fox on a snow field", height=height, width=width, num_inference_steps=steps)
    cost, report = sampler.plan(config).cost, sampler.run(config).report
    said = (cost.model_calls, cost.decodes, cost.encodes, cost.gradients)
    counted = (report.model_calls, report.vae_decodes, report.vae_encodes, report.gradients)
    pairs = [str(number) for pair in zip(said, counted, strict=True) for number in pair]
    work = cost.evaluations(sampler.backbone.native_size**2)
    return [method, f"{width}x{height}", *pairs, f"{work:.0f}", f"{report.engine_s:.1f}"], said == counted


def main(
    out: Annotated[Path | None, typer.Option(help="Markdown file for the table.")] = None,
    steps: int = 5,
    threads: int = 1,
) -> None:
    """Plan, run and compare all methods; the exit code is 1 if a plan was wrong."""
    torch.set_num_threads(threads)
    console, table, lines, agree = Console(width=140), Table(*HEAD, box=None), [], True
    backbone = Sampler.from_pretrained("demo", "direct").backbone
    for method in registry().names("methods"):
        sampler = Sampler(backbone, load_method(method), model="demo")
        for height, width in SIZES:
            line, same = row_of(sampler, method, height, width, steps)
            lines.append(line)
            table.add_row(*line)
            agree = agree and same
            console.print(" ".join(line))
    console.print(table)
    if out is not None:
        body = ["| " + " | ".join(line) + " |" for line in (HEAD, ["---"] * len(HEAD), *lines)]
        out.write_text(PAGE.format(steps=steps, table="\n".join(body)))
    raise typer.Exit(0 if agree else 1)


PAGE = """# What a run asks of its networks: foreseen and counted

Made by `python tools/measure_costs.py --out docs/results/costs.md`: every method on the demo model with {steps} steps,
guidance on, so a view costs two evaluations. `vitrail sample ... --dry-run` tells the evaluations of any run, the
pictures that its VAE decodes and encodes on the way, and the views that are differentiated.

- `evaluations`: rows - a view and a branch of classifier-free guidance - that the network sees; in each pair the first
  is what the plan said, the second what the run counted.
- `decodes`, `encodes`: pictures that go through the VAE, the last one included; a cascade in pixels and guidance by
  wavelets need them, and so does guidance by gradients, for every view it looks at.
- `gradients`: views that are differentiated, each a way back through decoder and network beside its evaluations and its
  decoded picture. The way back is not in `of one view`.
- `of one view`: the same work in forwards of one view of the training size with both branches, with the share of
  quadratic cost that SDXL's network has (an eighth at the training size); so a large view counts for many small ones.
  It goes by the size of the view alone: features that are made smaller inside a network (`hidiffusion`) are not counted
  as less, and what convolutions with holes take more (`scalecrafter`) is not counted as more.
- `seconds`: of the loop, on one CPU thread; other work ran beside it, so it is rough.

{table}
"""

if __name__ == "__main__":
    typer.run(main)
