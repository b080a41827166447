"""Acceptance test of the demo model: samples at the training size, classified and counted by the judge.

Usage: python tools/measure_demo_model.py --sheet runs/base.png
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console

from vitrail.demo.judge import Judge
from vitrail.demo.scenes import BASE_SIZE
from vitrail.experiments.spec.experiment_file import scene
from vitrail.sampling.sampler import Sampler


def main(
    count: int = 64,
    steps: int = 25,
    guidance_scale: float = 3.0,
    model: str = "demo",
    sheet: Annotated[Path | None, typer.Option(help="Contact sheet, PNG.")] = None,
    threads: int = 1,
) -> None:
    """Sample ``count`` pictures with different prompts and seeds and print the shares."""
    torch.set_num_threads(threads)
    console, judge = Console(width=160), Judge.load()
    sampler = Sampler.from_pretrained(model, "direct")
    pictures, right, single, wrong = [], 0, 0, []
    for i in range(count):
        name, prompt = scene(i)
        picture = sampler(
            prompt,
            height=BASE_SIZE,
            width=BASE_SIZE,
            seed=1000 + i,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="pt",
        ).images[0]
        found = judge.detect(picture)
        seen = max(found, key=lambda d: d.score).name if found else "nothing"
        right += seen == name
        single += len(found) == 1
        if seen != name or len(found) != 1:
            wrong.append(f"{i}: {prompt}: {', '.join(d.name for d in found) or 'nothing'}")
        pictures.append(picture)
    console.print(f"{count} prompts, {steps} steps, guidance scale {guidance_scale:g}, {BASE_SIZE}x{BASE_SIZE}")
    console.print(f"class right {right}/{count} = {100 * right / count:.1f} %")
    console.print(f"exactly one object {single}/{count} = {100 * single / count:.1f} %")
    for line in wrong:
        console.print(f"  {line}")
    if sheet is not None:
        rows = [torch.cat(pictures[i : i + 8], dim=2) for i in range(0, count - count % 8, 8)]
        page = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(page).save(sheet)


if __name__ == "__main__":
    typer.run(main)
