"""Tiny real pipelines of every family, built from config; no mocks."""

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from tiny import NATIVE, tiny_pipeline, tiny_tokenizer

WIDTH, WIDTH_2 = 32, 48  # of the text encoders; they differ, as those of real models do
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def text_config(tokenizer, width=WIDTH, act="quick_gelu"):
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def tiny_vae(channels=4, quant=True, **options):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        **options,
    ).eval()


def tiny_sd():
    """Stable Diffusion 1.x: epsilon."""
    return tiny_pipeline()


def tiny_sd2():
    """Stable Diffusion 2.1: velocity, linear projections."""
    pipe = tiny_pipeline(
        EulerDiscreteScheduler(**SCALED, prediction_type="v_prediction", timestep_spacing="leading", steps_offset=1)
    )
    torch.manual_seed(1)
    pipe.unet = UNet2DConditionModel(
        sample_size=NATIVE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(4, 8),
        use_linear_projection=True,
        upcast_attention=True,
    ).eval()
    return pipe


def tiny_sdxl():
    """Stable Diffusion XL: two text encoders, pooled text, sizes."""
    torch.manual_seed(2)
    tokenizer = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=NATIVE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(4, 8),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH_2,
        cross_attention_dim=WIDTH + WIDTH_2,
    ).eval()
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(text_config(tokenizer)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, WIDTH_2, "gelu")).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SCALED, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_sd3(**options):
    """Stable Diffusion 3: a transformer, flow matching, 16 channels, no T5."""
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=NATIVE,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH + WIDTH_2,
        caption_projection_dim=32,
        pooled_projection_dim=WIDTH + WIDTH_2,
        out_channels=16,
        pos_embed_max_size=24,
        **options,
    ).eval()
    text = CLIPTextModelWithProjection(text_config(tokenizer)).eval()
    torch.nn.init.eye_(text.text_projection.weight)  # as in the released models; single files leave it out
    pipe = StableDiffusion3Pipeline(
        vae=tiny_vae(16, quant=False, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=text,
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer, WIDTH_2, "gelu")).eval(),
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tiny_tokenizer(),
        tokenizer_3=None,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_t5():
    """Stable Diffusion 3 with its third text encoder."""
    pipe = tiny_sd3()
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *letters], extra_ids=0
    )
    sizes = {"d_model": WIDTH + WIDTH_2, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **sizes)
    pipe.register_modules(text_encoder_3=T5EncoderModel(config).eval(), tokenizer_3=tokenizer)
    return pipe


def tiny_sd35():
    """Stable Diffusion 3.5 medium: a second attention, of the picture to itself, in early blocks; normalised keys."""
    return tiny_sd3(dual_attention_layers=(0, 1), qk_norm="rms_norm")


FAMILIES = {"sd": tiny_sd, "sd2": tiny_sd2, "sdxl": tiny_sdxl, "sd3": tiny_sd3}
CONTRACTED = FAMILIES | {
    "sd3-t5": tiny_t5,
    "sd3.5": tiny_sd35,
}  # a new family begins here
