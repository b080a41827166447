"""Measure peak memory of denoiser and engine over canvases of increasing size.

Usage: python benchmarks/memory.py [--preset tiny] [--device cpu] [--dtype float32] [--areas 1,4,16,64]

Weights are random, since memory does not depend on them; ``--preset sdxl --device cuda --dtype bfloat16`` has
the size of Stable Diffusion XL and needs no download. The denoiser's peak is the memory of its forwards above
that at their begin; it must be constant within two percent for all canvases. The engine's peak is all other
memory but weights: the canvas, the views read from it, their predictions. On a CPU live tensors are counted;
on other devices torch's allocator is queried.
"""

from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from attrs import define, frozen
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import CLIPTokenizer

import vitrail
from vitrail import hookimpl
from vitrail.backbones.memory.footprint import LiveBytes, row_bytes
from vitrail.core.schedule.streams import Streams
from vitrail.experiments.run.origin import commit_of_vitrail, machine
from vitrail.sampling.sampler import Sampler

CONFIGS = Path(vitrail.__file__).parent / "backbones/loading/configs"
PRESETS = {
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    },
    "tiny-xl": {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (4, 8),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
        "cross_attention_dim": 64,
    },
    "sd15": CONFIGS / "sd-1.5/unet/config.json",
    "sdxl": CONFIGS / "sdxl/unet/config.json",
}
FLAT = 0.02  # maximum relative difference of the denoiser's peak between canvases
STEPS = 2  # one per stage of asg; the first forward of a run is left out, since it prepares the text
TOKENS = 77  # of a prompt


@define
class Peaks:
    """Plugin that records the peak memory of denoiser and engine in bytes, at every forward."""

    gauge: Any
    denoiser: int = 0
    engine: int = 0
    forwards: int = 0

    @hookimpl(wrapper=True)
    def vitrail_predict(self):
        """Record the peaks before and during a forward; the first forward of a run is left out."""
        self.note_engine()
        before = self.gauge.now
        answer = yield
        if self.forwards:
            self.denoiser = max(self.denoiser, self.gauge.peak - before)
        self.forwards += 1
        self.gauge.forget()
        return answer

    def note_engine(self) -> None:
        """Update the engine's peak with that since the last forward."""
        self.engine = max(self.engine, self.gauge.peak - self.gauge.base)
        self.gauge.forget()


class Tracked(LiveBytes):
    """Gauge that counts live tensors, for the CPU, whose allocator has no statistics."""

    base = 0

    def forget(self) -> None:
        """Reset the peak to the current memory."""
        self.peak = self.now


class AllocatorGauge:
    """Gauge that queries the allocator of an accelerator."""

    def __init__(self, device: torch.device):
        self._device, self._module = device, torch.get_device_module(device)
        self._module.empty_cache()
        self.forget()
        self.base = self.now

    @property
    def now(self) -> int:
        """Memory of live tensors in bytes."""
        return self._module.memory_allocated(self._device)

    @property
    def peak(self) -> int:
        """Peak of live bytes since ``forget``."""
        return self._module.max_memory_allocated(self._device)

    def forget(self) -> None:
        """Reset the peak to the current memory."""
        self._module.reset_peak_memory_stats(self._device)


@frozen
class Case:
    """One run: method, area of the canvas over that of the training size, rows of a micro-batch."""

    method: str
    area: int
    row_batch: int


def pipeline(preset: str, device: torch.device, dtype: torch.dtype):
    """Build a pipeline with the preset's network and without text encoders.

    Args:
        preset: One of ``PRESETS``.
        device: Device of the networks.
        dtype: Dtype of the network.
    """
    config = PRESETS[preset]
    if isinstance(config, Path):
        config = UNet2DConditionModel._dict_from_json_file(config)
    with device:
        unet = torch.nn.Module.to(UNet2DConditionModel.from_config(config), dtype).eval()
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
        )
    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip-tokenizer", model_max_length=TOKENS)
    words = {"text_encoder": None, "tokenizer": tokenizer}
    parts = {"vae": vae, "unet": unet, "scheduler": EulerDiscreteScheduler(steps_offset=1)}
    if unet.config.addition_embed_type == "text_time":
        return StableDiffusionXLPipeline(**words, **parts, text_encoder_2=None, tokenizer_2=tokenizer)
    return StableDiffusionPipeline(
        **words, **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def text(unet, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return random embeddings in place of a prompt's."""
    device, streams, config = unet.device, Streams(0), unet.config
    named = {"prompt_embeds": (1, TOKENS, config.cross_attention_dim)}
    if config.addition_embed_type == "text_time":
        named["pooled_prompt_embeds"] = (
            1,
            config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,
        )
    return {
        prefix + name: streams.normal(shape, prefix + name).to(device, dtype)
        for name, shape in named.items()
        for prefix in ("", "negative_")
    }


def measure(case: Case, pipe: Any, words: dict[str, torch.Tensor]) -> Peaks:
    """Measure the peaks of one run.

    Args:
        case: The run.
        pipe: The pipeline.
        words: Embeddings of the prompt.
    """
    gauge = Tracked() if pipe.device.type == "cpu" else AllocatorGauge(pipe.device)
    peaks = Peaks(gauge)
    sampler = Sampler.from_pipeline(pipe, case.method, plugins=[("peaks", peaks)])
    side = round(pipe.unet.config.sample_size * pipe.vae_scale_factor * case.area**0.5)
    call = {"height": side, "width": side, "num_inference_steps": STEPS, "guidance_scale": 2.0, **words}
    with gauge if isinstance(gauge, LiveBytes) else nullcontext():
        sampler("a fox on a field", row_batch=case.row_batch, output_type="latent", **call)
        peaks.note_engine()
    return peaks


def rows_of(case: Case) -> int:
    """Return the rows of the largest forward: at most two for a canvas of one view."""
    return min(case.row_batch, 2) if case.area == 1 else case.row_batch


def flatness(found: dict[Case, Peaks]) -> float:
    """Return the largest relative difference of the denoiser's peak between canvases."""
    groups = defaultdict(list)
    for case, peaks in found.items():
        groups[case.method, rows_of(case)].append(peaks.denoiser)
    return max(max(group) / min(group) - 1 for group in groups.values())


def main(
    preset: Annotated[str, typer.Option(help="tiny, tiny-xl, sd15 or sdxl.")] = "tiny",
    device: str = "cpu",
    dtype: str = "float32",
    areas: Annotated[str, typer.Option(help="Canvases, in areas of the training size.")] = "1,4,16,64",
    row_batches: Annotated[str, typer.Option(help="Rows a forward.")] = "1,2,4",
    methods: Annotated[str, typer.Option(help="What to sample with.")] = "multidiffusion,asg",
) -> None:
    """Measure all cases and print the table; the exit code is 1 if the denoiser's peak is not constant."""
    place, kind = torch.device(device), getattr(torch, dtype)
    pipe = pipeline(preset, place, kind)
    words, native = text(pipe.unet, kind), pipe.unet.config.sample_size
    each = row_bytes(pipe.unet, (native, native))
    table = Table("method", "canvas", "rows", "denoiser, MB", "predicted, MB", "engine, MB", box=box.MARKDOWN)
    found: dict[Case, Peaks] = {}
    for method in methods.split(","):
        for row_batch in map(int, row_batches.split(",")):
            for area in map(int, areas.split(",")):
                case = Case(method, area, row_batch)
                found[case] = peaks = measure(case, pipe, words)
                need = rows_of(case) * each
                numbers = (f"{count / 1e6:.3f}" for count in (peaks.denoiser, need, peaks.engine))
                table.add_row(method, f"{area}x", str(rows_of(case)), *numbers)
    weights = sum(p.numel() * p.element_size() for p in pipe.unet.parameters())
    console, worst = Console(width=120), flatness(found)
    console.print(
        f"{preset} ({weights / 1e6:.1f} MB), {dtype} on {device}, {machine(torch.device(device))}, "
        f"torch {torch.__version__}, {commit_of_vitrail()}"
    )
    console.print(table)
    console.print(
        f"the denoiser's peak differs by {100 * worst:.2f} % between canvases, at most {100 * FLAT:g} % is flat"
    )
    raise typer.Exit(0 if worst <= FLAT else 1)


if __name__ == "__main__":
    typer.run(main)
