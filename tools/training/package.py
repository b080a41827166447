"""Stage four: the trained parts as one ordinary diffusers folder, with a model card."""

import json
import platform
import subprocess
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.tokenizer import MAX_LENGTH


def package(folder: Path, target: Path, notes: str) -> None:
    """Write ``target``, which ``StableDiffusionPipeline.from_pretrained`` loads; the large parts in float16.

    Args:
        folder: Where the stages left ``vae`` and ``model``.
        target: The folder that ships.
        notes: Measured results, for the model card.
    """
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float16),
        unet=UNet2DConditionModel.from_pretrained(folder / "model/unet", dtype=torch.float16),
        # float32: transformers loads a part in the type it was saved in, diffusers in float32
        text_encoder=CLIPTextModel.from_pretrained(folder / "model/text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "model/tokenizer", model_max_length=MAX_LENGTH),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "model/scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(target)
    for config in target.rglob("*.json"):
        _forget_path(config)
    (target / "README.md").write_text(card(folder, target, notes))


def _forget_path(config: Path) -> None:
    """Drop the key in which the libraries keep the folder a part was loaded from."""
    data = json.loads(config.read_text())
    if isinstance(data, dict) and data.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(data, indent=2) + "\n")


def card(folder: Path, target: Path, notes: str) -> str:
    """The model card."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    sizes = {p.parent.name: p.stat().st_size / 2**20 for p in sorted(target.rglob("*.safetensors"))}
    logs = {stage: _last_line(folder / stage / "log.jsonl") for stage in ("autoencoder", "denoiser")}
    return CARD.format(
        commit=commit,
        machine=f"{platform.machine()}, 2 CPU cores, torch {torch.__version__}",
        sizes=", ".join(f"{name} {size:.1f} MiB" for name, size in sizes.items()),
        logs="\n".join(f"- {stage}: `{json.dumps(line)}`" for stage, line in logs.items()),
        notes=notes,
    )


def _last_line(log: Path) -> dict[str, float]:
    lines = log.read_text().splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


CARD = """# The demo model

A small text-to-image latent-diffusion model for tests, docs and first steps. It draws one of sixteen emoji
objects on one of seven backgrounds at 128x128 pixels, and nothing else. It is a demo model: do not judge a method's
looks by it, only what the method does to structure.

- Architecture: AutoencoderKL (factor 8, 8 latent channels), UNet2DConditionModel (64/128/256, v-prediction),
  CLIPTextModel (2 layers, width 128), a tokenizer of 658 tokens. Safetensors: {sizes}.
- Data: drawn by `vitrail.backbones.demo.scenes`; sprites from the Noto Emoji (Apache-2.0).
- Training: `python tools/train_demo_model.py autoencoder|denoiser|package`, commit {commit}, {machine}.
  The last line of each stage's log:
{logs}

{notes}
"""
