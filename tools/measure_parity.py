"""Compare ``direct`` with diffusers' pipelines: maximum difference of final latents by family, scheduler and path.

Usage: PYTHONPATH=src:tools:tests/support python tools/measure_parity.py [--out docs/results/parity.md]

Tiny networks built from config, float32, the training size, 5 steps. 0 means equal bit by bit.
"""

from pathlib import Path
from typing import Annotated

import diffusers
import torch
import typer
from rich.console import Console

import schedulers
from tiny import NATIVE
from tiny_families import FAMILIES
from vitrail.sampling.sampler import Sampler

IMG2IMG = {
    "StableDiffusionPipeline": "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusion3Pipeline": "StableDiffusion3Img2ImgPipeline",
}
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
STRENGTH, STEPS = 0.6, 5
PATHS = ("txt2img", "txt2img, no CFG", "txt2img, rescale 0.7", "img2img")


PAGE = """# Parity with diffusers

The method `direct` against diffusers' own pipelines at the training size: the largest absolute difference of the final
latents, where 0 means bit for bit. Tiny networks built from config, float32, 5 steps, the same noise; diffusers
{diffusers}, torch {torch}, one thread. Made by
`PYTHONPATH=src:tools:tests/support python tools/measure_parity.py --out docs/results/parity.md`, and kept true by
`tests/integration/test_family_parity.py`, which also holds `multidiffusion` against diffusers' panorama pipeline at its
stride of 8 cells, with and without circular padding: within 2e-5, since they step every window and average afterwards.

{table}
"""


def names_for(family: str) -> list[str]:
    """Return the deterministic schedulers that support a family."""
    if family == "sd3":
        return list(FLOW)
    return [name for name in schedulers.DETERMINISTIC if not name.startswith(("FlowM", "LTX")) and name in USUAL]


USUAL = {
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}


def with_scheduler(pipe, name: str):
    """Return the components and options of a pipeline with another scheduler of the same noise schedule."""
    cls = getattr(diffusers, name)
    options = {"clip_sample": False} if "clip_sample" in cls.__init__.__code__.co_varnames else {}
    components = {**pipe.components, "scheduler": cls.from_config(pipe.scheduler.config, **options)}
    optional = {"requires_safety_checker": False} if "safety_checker" in components else {}
    return components, optional


def difference(pipe, name: str, path: str) -> float:
    """Compute the largest absolute difference of the final latents.

    Args:
        pipe: A pipeline of diffusers.
        name: Name of the scheduler.
        path: One of ``PATHS``.
    """
    components, optional = with_scheduler(pipe, name)
    cls = type(pipe)
    call = {"num_inference_steps": STEPS, "guidance_scale": 1.0 if path.endswith("no CFG") else 5.0}
    if "rescale" in path:
        call["guidance_rescale"] = 0.7
    shape = (1, pipe.vae.config.latent_channels, NATIVE, NATIVE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    sides = {"height": 8 * NATIVE, "width": 8 * NATIVE}
    ours = Sampler.from_pipeline(cls(**components, **optional), "direct")
    if path != "img2img":
        theirs = quiet(cls(**components, **optional))("a fox", latents=noise, output_type="latent", **sides, **call)
        result = ours("a fox", latents=noise, output_type="latent", **sides, **call)
    else:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        call["strength"] = STRENGTH
        other = quiet(getattr(diffusers, IMG2IMG[cls.__name__])(**components, **optional))
        generator = torch.Generator().manual_seed(1)
        extra = sides if cls.__name__ == "StableDiffusion3Pipeline" else {}
        theirs = other("a fox", image=image, generator=generator, output_type="latent", **extra, **call)
        result = ours("a fox", image=image, latents=noise, output_type="latent", **sides, **call)
    return float((result.latents - theirs.images).abs().max())


def quiet(pipe):
    """Disable a pipeline's progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paths_for(family: str) -> tuple[str, ...]:
    """Return the paths that diffusers' pipelines of a family support."""
    return tuple(path for path in PATHS if not (family == "sd3" and "rescale" in path))


def main(out: Annotated[Path | None, typer.Option(help="Markdown file.")] = None) -> None:
    """Measure, print, and write the table if a file is named."""
    lines = ["| family | scheduler | " + " | ".join(PATHS) + " |", "|---|---|" + "--:|" * len(PATHS)]
    for family, build in FAMILIES.items():
        pipe = quiet(build())
        for name in names_for(family):
            cells = [f"{difference(pipe, name, path):.3g}" if path in paths_for(family) else "-" for path in PATHS]
            lines.append(f"| {family} | {name} | " + " | ".join(cells) + " |")
            Console(width=160).print(lines[-1])
    if out is not None:
        out.write_text(PAGE.format(diffusers=diffusers.__version__, torch=torch.__version__, table="\n".join(lines)))


if __name__ == "__main__":
    typer.run(main)
