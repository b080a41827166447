"""Models that both sides get: tiny random ones with the blocks of the real ones, or a folder of the user's."""

import importlib.resources
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch
from attrs import frozen
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .checkout import RefusedError

CLASSES = {"sd": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
WIDTH, WIDTH_2 = 32, 48  # of the text encoders
UNTILED = 2**14  # side in pixels up to which a tiny VAE that is told to tile decodes and encodes at once


class Model(Protocol):
    """Source of pipelines with the same weights."""

    def pipeline(self) -> Any:
        """Return a pipeline that nobody else has."""

    def folder(self, scratch: Path) -> Path:
        """Return a folder with its parts, in diffusers' layout; written into ``scratch`` if there is none."""


@frozen
class TinyModel:
    """A random model of a family.

    Attributes:
        family: ``sd`` or ``sdxl``.
        native: Side of a training picture in latent cells.
        device: A torch device.
    """

    family: str
    native: int
    device: str = "cpu"

    def pipeline(self) -> Any:
        """Build it; always with the same weights, as long as the versions of the libraries are the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = _sd(self.native) if self.family == "sd" else _sdxl(self.native)
        return _quiet(pipe).to(self.device)

    def folder(self, scratch: Path) -> Path:
        """Write it into ``scratch``."""
        self.pipeline().save_pretrained(scratch)
        return scratch


@frozen
class FolderModel:
    """A user's model.

    Attributes:
        path: A folder in diffusers' layout.
        family: The family that it must have.
        device: A torch device.
    """

    path: Path
    family: str
    device: str = "cpu"

    def pipeline(self) -> Any:
        """Load it in float32.

        Raises:
            RefusedError: If it has another family.
        """
        if not (self.path / "model_index.json").is_file():
            raise RefusedError(f"--model {self.path}: has no model_index.json; give a folder in diffusers' layout")
        pipe = diffusers.DiffusionPipeline.from_pretrained(self.path, torch_dtype=torch.float32)
        if type(pipe).__name__ != CLASSES[self.family]:
            raise RefusedError(
                f"--model {self.path}: is a {type(pipe).__name__}, and the authors' code is for {CLASSES[self.family]}"
            )
        return _quiet(pipe).to(self.device)

    def folder(self, scratch: Path) -> Path:
        """The folder itself."""
        return self.path.resolve()


def with_scheduler(pipe: Any, name: str | None) -> Any:
    """Give a pipeline another scheduler with its noise schedule, as Vitrail's ``scheduler`` does.

    Args:
        pipe: The pipeline, changed.
        name: A class of diffusers; None for its own.
    """
    if name is not None:
        options = {} if "clip_sample" in pipe.scheduler.config else {"clip_sample": False}
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    return pipe


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _sd(native: int) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=native,
        block_out_channels=(16, 32, 64, 64),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return diffusers.StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=CLIPTextModel(_text(WIDTH)).eval(),
        tokenizer=_tokenizer(),
        unet=unet.eval(),
        scheduler=diffusers.DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(native: int) -> Any:
    unet = diffusers.UNet2DConditionModel(
        sample_size=native,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(2, 2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH_2,
        cross_attention_dim=WIDTH + WIDTH_2,
        norm_num_groups=8,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=CLIPTextModel(_text(WIDTH)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text(WIDTH_2)).eval(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet.eval(),
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _vae(scale: float) -> Any:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        scaling_factor=scale,
        sample_size=UNTILED,
    ).eval()


def _tokenizer() -> CLIPTokenizer:
    place = importlib.resources.files("vitrail.backbones.loading") / "configs/clip-tokenizer"
    with importlib.resources.as_file(place) as folder:
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=49406,
        eos_token_id=49407,
    )
