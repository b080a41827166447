"""Compare several ranks with one: speed-up, exposed communication, and the cost model's prediction.

Usage: python benchmarks/ranks.py [--ranks 2] [--size 512] [--steps 10] [--repeats 3]

Ranks are gloo processes with one thread each, on the demo model. For synchronous and asynchronous guidance, with
and without the swap of values between lattice views, runs on one rank and on several alternate, and their medians
are compared. The prediction uses the seconds of a forward, measured in the same runs: on one rank alone, and with
all ranks at work, since cores that share a unit slow each other down.
"""

import functools
import statistics
import sys
from typing import Annotated

import torch
import typer
from attrs import frozen
from rich.console import Console
from rich.table import Table

from vitrail.comm import Gloo
from vitrail.comm.trace.cost_model import CostModel
from vitrail.comm.trace.speedup_model import RunLoad, StageLoad, predict
from vitrail.comm.trace.summary import summarize
from vitrail.experiments.run.origin import commit_of_vitrail, machine

CASES = {
    "async, exchange": ("async", "element"),
    "sync, exchange": ("sync", "element"),
    "async, no exchange": ("async", "none"),
    "sync, no exchange": ("sync", "none"),
}
ROW_BATCH = 2


@frozen
class Run:
    """One run: seconds of the loop, of exposed communication and of a forward on average, and the latents' digest."""

    loop_s: float
    exposed_s: float
    forward_s: float
    digest: str


def measure(guidance: str, interaction: str, size: int, steps: int, communicator) -> Run:
    """Run and measure on one rank.

    Args:
        guidance: Type of the guidance, "async" or "sync".
        interaction: Swap of values between views, "element" or "none".
        size: Side of the picture in pixels.
        steps: Sampling steps.
        communicator: Communicator of the rank.
    """
    import hashlib

    import torch

    from vitrail.sampling.methods import load_method
    from vitrail.sampling.sampler import Sampler, Spread

    torch.set_num_threads(1)
    sets = [f"stages.0.guidance.0.type={guidance}", f"stages.0.patching.interaction={interaction}"]
    method = load_method("asg", sets)
    sampler = Sampler(Sampler.from_pretrained("demo", method).backbone, method, model="demo")
    call = {"height": size, "width": size, "output_type": "latent", "row_batch": ROW_BATCH}
    sampler("a fox on a snow field", num_inference_steps=1, **call)
    communicator.barrier()
    spread = Spread(communicator=communicator)
    result = sampler("a fox on a snow field", num_inference_steps=steps, spread=spread, **call)
    seconds = [span.end - span.begin for trace in result.traces for span in trace.spans if "rows" in span.args]
    begin = min(span.begin for trace in result.traces for span in trace.spans if "rows" in span.args)
    end = max(span.end for trace in result.traces for span in trace.spans if "rows" in span.args)
    exposed = summarize(result.traces).mean_exposed_s if len(result.traces) > 1 else 0.0
    digest = hashlib.sha256(result.latents.numpy().tobytes()).hexdigest()[:12]
    return Run(end - begin, exposed, statistics.mean(seconds), digest)


def forecast(guidance: str, interaction: str, steps: int, forward_s: float, ranks: int) -> float:
    """Predict the seconds of the loop by the cost model: 16 lattice views, then 49 windows, at 512x512.

    Args:
        guidance: Type of the guidance, "async" or "sync".
        interaction: Swap of values between views, "element" or "none".
        steps: Sampling steps.
        forward_s: Seconds of a forward.
        ranks: Number of ranks.
    """
    channel = interaction == "none"
    structure = StageLoad(
        steps=(steps + 1) // 2,
        views=16,
        cells=256,
        exchange="channel" if channel else "gather",
        lag=1 if guidance == "async" else 0,
    )
    windows = StageLoad(steps=steps // 2, views=49, cells=256)
    cost = CostModel(row_s=forward_s / ROW_BATCH, cells=256, latency_s=5e-4, bandwidth=1e9)
    return predict(RunLoad(stages=(structure, windows), row_batch=ROW_BATCH), cost, ranks).makespan_s


def main(
    ranks: int = 2,
    size: Annotated[int, typer.Option(help="Pixels; the prediction is made for 512.")] = 512,
    steps: int = 10,
    repeats: int = 3,
) -> None:
    """Measure all cases and print the table."""
    head = (
        "case",
        "1 rank, s",
        f"{ranks} ranks, s",
        "speed-up",
        "exposed",
        "predicted, s",
        "error",
        "alone",
        "equal bits",
    )
    table = Table(*head, box=None, header_style="bold")
    for name, (guidance, interaction) in CASES.items():
        program = functools.partial(measure, guidance, interaction, size, steps)
        one, many = [], []
        for _ in range(repeats):
            one.append(Gloo().run(1, program)[0])
            many.append(Gloo().run(ranks, program)[0])
        single, several = (statistics.median(run.loop_s for run in runs) for runs in (one, many))
        exposed = statistics.median(run.exposed_s / run.loop_s for run in many)
        busy, alone = (statistics.median(run.forward_s for run in runs) for runs in (many, one))
        predicted = forecast(guidance, interaction, steps, busy, ranks)
        unslowed = forecast(guidance, interaction, steps, alone, ranks)
        table.add_row(
            name,
            f"{single:.2f}",
            f"{several:.2f}",
            f"{single / several:.2f}",
            f"{100 * exposed:.1f} %",
            f"{predicted:.2f}",
            f"{100 * (predicted / several - 1):+.1f} %",
            f"{unslowed:.2f}",
            "yes" if len({run.digest for run in one + many}) == 1 else "NO",
        )
        sys.stderr.write(f"{name}: done\n")
    console = Console(width=140)
    console.print(
        f"asg, {size}x{size}, {steps} steps, row batch {ROW_BATCH}, {machine(torch.device('cpu'))}, "
        f"{commit_of_vitrail()}, medians of {repeats}"
    )
    console.print(table)
    console.print("predicted: with a forward's seconds while all ranks work; alone: with those of one rank alone")


if __name__ == "__main__":
    typer.run(main)
