"""Packaging of the trained parts as one diffusers folder with a model card."""

import json
import platform
import subprocess
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.tokenizer import MAX_LENGTH


def package(folder: Path, target: Path, notes: str) -> None:
    """Write a folder for ``StableDiffusionPipeline.from_pretrained``, with VAE and U-Net in float16.

    Args:
        folder: Folder of the training runs.
        target: Folder of the shipped model.
        notes: Measured results, for the model card.
    """
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "autoencoder/weights", dtype=torch.float16),
        unet=UNet2DConditionModel.from_pretrained(folder / "denoiser/weights/unet", dtype=torch.float16),
        # float32: transformers loads a part in the type it was saved in, diffusers in float32
        text_encoder=CLIPTextModel.from_pretrained(folder / "denoiser/weights/text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "denoiser/weights/tokenizer", model_max_length=MAX_LENGTH),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "denoiser/weights/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(target)
    for config in target.rglob("*.json"):
        _forget_path(config)
    (target / "README.md").write_text(card(folder, target, notes))


def _forget_path(config: Path) -> None:
    """Remove ``_name_or_path``, where the libraries store the folder that a part was loaded from."""
    data = json.loads(config.read_text())
    if isinstance(data, dict) and data.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(data, indent=2) + "\n")


def card(folder: Path, target: Path, notes: str) -> str:
    """Return the text of the model card.

    Args:
        folder: Folder of the training runs, for their logs.
        target: Folder of the shipped model, for the sizes of weights.
        notes: Measured results.
    """
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    sizes = {p.parent.name: p.stat().st_size / 2**20 for p in sorted(target.rglob("*.safetensors"))}
    stages = [f"- {stage}: {_trained(folder / stage / 'log.jsonl')}" for stage in ("autoencoder", "denoiser")]
    return CARD.format(
        commit=commit,
        machine=f"{platform.machine()}, torch {torch.__version__}",
        sizes=", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items()),
        stages="\n".join(stages),
        notes=notes,
    )


def _trained(log: Path) -> str:
    """Summarise a log: number of steps and the last measurement."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    measured = [line for line in lines if "measured" in line]
    return f"{lines[-1]['step']} steps; at step {measured[-1]['step']} {json.dumps(measured[-1]['measured'])}"


CARD = """# The demo model

A small text-to-image latent-diffusion model for tests, docs and first steps. It draws one of sixteen emoji
objects on one of seven backgrounds at 128x128 pixels, and nothing else. It is a demo model: do not judge a method's
looks by it, only what the method does to structure.

- Architecture: AutoencoderKL (factor 8, 8 latent channels), UNet2DConditionModel (64/128/256, v-prediction),
  CLIPTextModel (2 layers, width 128), a tokenizer of 658 tokens. Safetensors: {sizes}.
- Data: drawn by `vitrail.demo.scenes`; sprites from the Noto Emoji (Apache-2.0).
- Training: `python -m training autoencoder|denoiser|package`, commit {commit}, {machine}:
{stages}

{notes}
"""
