"""Measure seconds per method on an SDXL-shaped network of random weights, and the time outside of it.

Usage:
    python benchmarks/backbones.py                                        # a small network, for a CPU
    python benchmarks/backbones.py --preset sdxl --device cuda --dtype bfloat16 --steps 50   # the full size, 2048x2048

Random weights take the time of trained ones. Every method samples one picture of twice the training size; the first
run of each is for warm-up. Work outside of the network's forwards is given as a share of the loop, the mask's
computation as a share of the same run without it, both with the device synchronised at each boundary. An evaluation is
a forward of one view with both guidance branches.
"""

import time
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import attrs
import torch
import typer
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from overhead import resolve
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import vitrail.backbones
from vitrail.experiments.run.origin import machine
from vitrail.sampling.sampler import Sampler

CONFIGS = Path(vitrail.backbones.__file__).parent / "loading/configs"
METHODS = ("direct", "multidiffusion", "cutdiffusion", "asg")
FORWARD = "vitrail.core.engine.network.Network.predict"
MASK = (
    "vitrail.backbones.attention.cross_attention.Maps.look",
    "vitrail.backbones.attention.cross_attention.Maps.mean",
    "vitrail.core.engine.hooks.Hooks.mask",
)
SMALL = {  # SDXL's architecture with a fifth of its width and a quarter of its training size
    "sample_size": 32,
    "block_out_channels": (64, 128, 256),
    "attention_head_dim": (2, 4, 8),
    "transformer_layers_per_block": (1, 1, 2),
    "cross_attention_dim": 128,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 6 * 32 + 64,
}


@attrs.define
class Spent:
    """Seconds of one run by part."""

    device: torch.device
    seconds: dict[str, float] = attrs.field(factory=dict)

    def wait(self) -> None:
        """Wait for pending work of the device."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def timed(self, function, part):
        """Wrap a function so that its time is added to a part."""

        def wrapper(*args, **kwargs):
            self.wait()
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.wait()
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begin

        return wrapper


def build(preset: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    """Build a pipeline with random weights.

    Args:
        preset: "small" or "sdxl".
        device: Device of the networks.
        dtype: Dtype of the networks.
    """
    folder = CONFIGS / "sdxl"
    options = SMALL if preset == "small" else {}
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"), **options)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        first = CLIPTextModel(CLIPTextConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=64)
        )
        if preset != "small":
            first = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
            second = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2"))
    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip-tokenizer", model_max_length=77)
    parts = {name: part.to(dtype).eval() for name, part in (("unet", unet), ("vae", vae))}
    return StableDiffusionXLPipeline(
        **parts,
        text_encoder=first.to(dtype).eval(),
        text_encoder_2=second.to(dtype).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        add_watermarker=False,
    ).to(device)


def measure(sampler: Sampler, side: int, steps: int, row_batch: int) -> dict[str, float]:
    """Measure the seconds of loop, forwards and mask, and count evaluations.

    Args:
        sampler: The sampler.
        side: Side of the picture in pixels.
        steps: Sampling steps.
        row_batch: Rows of a micro-batch.
    """
    spent = Spent(sampler.backbone.device)
    call = {
        "height": side,
        "width": side,
        "num_inference_steps": steps,
        "output_type": "latent",
        "row_batch": row_batch,
    }
    with patch(FORWARD, spent.timed(resolve(FORWARD), "forwards")):
        patches = [patch(path, spent.timed(resolve(path), "mask")) for path in MASK]
        for one in patches:
            one.start()
        report = sampler("a fox on a snow field", guidance_scale=7.5, **call).report
        for one in patches:
            one.stop()
    return spent.seconds | {"loop": report.engine_s, "evals": report.model_calls / 2}


def main(
    preset: Annotated[str, typer.Option(help="small or sdxl.")] = "small",
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Of the networks.")] = "float32",
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 6,
    row_batch: Annotated[int, typer.Option(help="Rows a forward.")] = 4,
) -> None:
    """Measure all methods and print the table."""
    pipe = build(preset, torch.device(device), getattr(torch, dtype))
    side = 2 * pipe.unet.config.sample_size * pipe.vae_scale_factor
    table = Table(title=f"{preset} network, {dtype}, {side}x{side}, {steps} steps, {machine(torch.device(device))}")
    for column in ("method", "s", "evaluations", "s / evaluation", "outside the network %", "mask %"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name in METHODS:
        sampler = Sampler.from_pipeline(pipe, name)
        measure(sampler, side, 2, row_batch)
        seen = measure(sampler, side, steps, row_batch)
        outside = 100 * (1 - seen["forwards"] / seen["loop"])
        mask = 100 * seen.get("mask", 0.0) / (seen["loop"] - seen.get("mask", 0.0))
        each = seen["loop"] / seen["evals"]
        table.add_row(
            name, f"{seen['loop']:.2f}", f"{seen['evals']:.0f}", f"{each:.3f}", f"{outside:.2f}", f"{mask:.2f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
