"""Tiny real networks built from config; no mocks."""

import copy
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

NATIVE = 8  # latent cells
PANORAMA_NATIVE = 64  # latent cells of a window of the panorama pipeline


def tiny_unet():
    return UNet2DConditionModel(
        sample_size=NATIVE,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )


def small_unet():
    """Attention where windows are halved alone, since theirs are large."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=PANORAMA_NATIVE,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=1,
        norm_num_groups=4,
    ).eval()


def one_block_unet():
    """Of one block each way, since compiling takes its time."""
    torch.manual_seed(4)
    return UNet2DConditionModel(
        sample_size=NATIVE,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=32,
        attention_head_dim=4,
    ).eval()


def tiny_tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "fo", "fox</w>", "<|startoftext|>", "<|endoftext|>"]
    quoted = ", ".join(f'"{token}": {i}' for i, token in enumerate(tokens))
    options = {"bos_token": tokens[-2], "eos_token": tokens[-1], "pad_token": tokens[-1], "unk_token": tokens[-1]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text("{" + quoted + "}")
        (folder / "merges.txt").write_text("#version: 0.2\nf o\nfo x</w>\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=16, **options)


def tiny_pipeline(scheduler=None):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    scheduler = scheduler or EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=tiny_unet().eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def in_double(pipe):
    """A copy in double precision, for laws that hold to rounding: methods make different things of it."""
    return copy.deepcopy(pipe).to(torch.float64)
