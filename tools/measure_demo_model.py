"""Acceptance test of the demo model: its autoencoder on true renders, and samples at the training size.

Usage: python tools/measure_demo_model.py --count 256 --sheet runs/base.png [--model FOLDER]

The autoencoder is measured by its reconstructions of renders: PSNR of all values, and of those that differ by more than
``training.autoencoder.EDGE`` from a neighbour. Samples are classified and counted by the judge, and compared with as
many renders by the Fréchet distance of its features.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console
from torch import Tensor

from training.autoencoder import edge_psnr, psnr, reconstruct
from vitrail.demo.judge import Judge
from vitrail.demo.scenes import BASE_SIZE
from vitrail.experiments.spec.experiment_file import scene
from vitrail.metrics.fid import frechet
from vitrail.metrics.judge_features import JUDGE
from vitrail.metrics.renders import DemoRenders
from vitrail.sampling.sampler import Sampler

SHIPPED = Path(__file__).parents[1] / "src/vitrail/demo/model"
COLUMNS = 8  # of a contact sheet
console = Console(width=160)


def samples(model: str, count: int, steps: int, guidance_scale: float) -> Tensor:
    """Sample pictures with different prompts and seeds, Float32[Tensor, "count 3 128 128"] in [0, 1]."""
    sampler, found = Sampler.from_pretrained(model, "direct"), []
    for i in range(count):
        result = sampler(
            scene(i)[1],
            height=BASE_SIZE,
            width=BASE_SIZE,
            seed=1000 + i,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="pt",
        )
        found.append(result.images[0])
    return torch.stack(found)


def judged(pictures: Tensor) -> tuple[int, int, list[str]]:
    """Count the pictures of the right class and those of exactly one object, and describe the others."""
    judge, right, single, wrong = Judge.load(), 0, 0, []
    for i, picture in enumerate(pictures):
        name, prompt = scene(i)
        found = judge.detect(picture)
        seen = max(found, key=lambda d: d.score).name if found else "nothing"
        right += seen == name
        single += len(found) == 1
        if seen != name or len(found) != 1:
            wrong.append(f"{i}: {prompt}: {', '.join(d.name for d in found) or 'nothing'}")
    return right, single, wrong


def write_sheet(pictures: Tensor, file: Path) -> None:
    """Write pictures, Float32[Tensor, "count 3 128 128"] in [0, 1], in rows of ``COLUMNS``."""
    whole = len(pictures) - len(pictures) % COLUMNS
    rows = [torch.cat(list(pictures[i : i + COLUMNS]), dim=2) for i in range(0, whole, COLUMNS)]
    page = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).save(file)


def main(
    count: int = 64,
    steps: int = 25,
    guidance_scale: float = 3.0,
    model: Annotated[Path, typer.Option(help="Folder of the model.")] = SHIPPED,
    vae: Annotated[Path | None, typer.Option(help="Folder of an autoencoder to measure alone.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Contact sheet: samples, or renders above reconstructions.")
    ] = None,
    threads: int = 1,
) -> None:
    """Measure the autoencoder on ``count`` renders and ``count`` samples of different prompts and seeds."""
    torch.set_num_threads(threads)
    truth = torch.stack([shown.picture for shown in DemoRenders(count=count).pictures(BASE_SIZE, BASE_SIZE)])
    coder = AutoencoderKL.from_pretrained(vae or model / "vae").float().eval()
    seen = reconstruct(coder, truth)
    console.print(
        f"autoencoder, {count} renders: PSNR {psnr(seen, truth):.2f} dB, at edges {edge_psnr(seen, truth):.2f} dB"
    )
    console.print(f"Fréchet distance of reconstructions {frechet(JUDGE.extract(seen), JUDGE.extract(truth)):.4f}")
    if vae is None:
        pictures = samples(str(model), count, steps, guidance_scale)
        right, single, wrong = judged(pictures)
        console.print(f"{count} prompts, {steps} steps, guidance scale {guidance_scale:g}, {BASE_SIZE}x{BASE_SIZE}")
        console.print(f"class right {right}/{count} = {100 * right / count:.1f} %")
        console.print(f"exactly one object {single}/{count} = {100 * single / count:.1f} %")
        console.print(f"Fréchet distance of samples {frechet(JUDGE.extract(pictures), JUDGE.extract(truth)):.4f}")
        for line in wrong:
            console.print(f"  {line}")
    else:
        shown = range(0, min(4 * COLUMNS, count), COLUMNS)
        pictures = torch.cat([part for i in shown for part in (truth[i : i + COLUMNS], seen[i : i + COLUMNS])])
    if sheet is not None:
        write_sheet(pictures, sheet)


if __name__ == "__main__":
    typer.run(main)
