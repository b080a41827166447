"""Compare Vitrail's compositions with diffusers' panorama pipeline: seconds and rows of one picture, and ratios.

Usage: python benchmarks/panorama.py [--size 512] [--steps 30] [--rounds 3] [--threads 1]

The pipeline gets windows of the demo model's training size with half overlap, as ``multidiffusion`` has, and as many
rows a forward; its own are for models of 64x64 latent cells. All are run by turns, decoding included.
"""

import statistics
import time
import warnings
from typing import Annotated

import torch
import typer
from diffusers import DDIMScheduler, StableDiffusionPanoramaPipeline
from rich.console import Console
from rich.table import Table

from vitrail.core.config.run_config import RunConfig
from vitrail.experiments.run.origin import commit_of_vitrail, machine
from vitrail.sampling.methods import load_method
from vitrail.sampling.sampler import Sampler

PROMPT = "a fox on a snow field"
METHODS = ("multidiffusion", "asg-plus", "asg-cascade", "asg-fast")
VIEWS = 8  # of the pipeline's forward; twice as many rows


def pipeline(backbone) -> StableDiffusionPanoramaPipeline:
    """Return diffusers' pipeline over the same parts, with windows of the model's training size."""

    class Panorama(StableDiffusionPanoramaPipeline):
        def get_views(self, height, width, window_size=0, stride=0, circular_padding=False):
            side = self.unet.config.sample_size
            return super().get_views(height, width, side, side // 2, circular_padding)

    names = ("vae", "text_encoder", "tokenizer", "unet")
    parts = {name: getattr(backbone.pipeline, name) for name in names}
    scheduler = DDIMScheduler.from_config(backbone.pipeline.scheduler.config, clip_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Panorama(
            **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    made.set_progress_bar_config(disable=True)
    return made


def contestants(size: int, steps: int) -> dict[str, tuple[int, object]]:
    """Return the rows of each contestant's network, and what makes its picture."""
    sampler = Sampler.from_pretrained("demo", "direct")
    theirs, call = pipeline(sampler.backbone), {"height": size, "width": size, "num_inference_steps": steps}
    views = len(theirs.get_views(size, size))
    guidance = {"guidance_scale": 3.0}

    def panorama():
        return theirs(PROMPT, view_batch_size=VIEWS, output_type="np", **call, **guidance)

    found = {"diffusers' panorama pipeline": (2 * views * steps, panorama)}
    for name in METHODS:
        own = Sampler(sampler.backbone, load_method(name), model="demo")
        rows = own.plan(RunConfig(prompt=PROMPT, **call, **guidance)).model_calls
        found[name] = (rows, lambda own=own: own(PROMPT, row_batch=2 * VIEWS, output_type="np", **call, **guidance))
    return found


def main(
    size: int = 512,
    steps: int = 30,
    rounds: Annotated[int, typer.Option(help="Pictures of each, by turns; the medians are printed.")] = 3,
    threads: int = 1,
) -> None:
    """Measure and print the table."""
    torch.set_num_threads(threads)
    every = contestants(size, steps)
    seconds = {name: [] for name in every}
    for turn in range(rounds + 1):  # the first one warms up
        for name, (_, make) in every.items():
            begin = time.perf_counter()
            make()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    table = Table("what", "rows", "seconds", "of the pipeline's", "of asg-plus's", box=None, header_style="bold")
    theirs, plus = medians["diffusers' panorama pipeline"], medians["asg-plus"]
    for name, own in medians.items():
        table.add_row(name, str(every[name][0]), f"{own:.2f}", f"{own / theirs:.2f}", f"{own / plus:.2f}")
    console = Console(width=120)
    setting = f"{size}x{size}, {steps} steps, medians of {rounds}, {threads} threads"
    console.print(f"{setting}, {machine(torch.device('cpu'))}, torch {torch.__version__}, {commit_of_vitrail()}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
