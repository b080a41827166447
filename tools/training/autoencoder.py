"""Stage one: an AutoencoderKL, factor 8, eight latent channels."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Generator, Tensor

from training.loop import LoopConfig, train
from training.pool import PicturePool, mixed_scene

CROP = 64  # pixels
BATCH = 8
KL_WEIGHT = 1e-4
KL_START = 300  # steps without it, then as many of a ramp: at once, it wins before the signal is found


def build() -> AutoencoderKL:
    """The demo model's autoencoder, untrained."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # start with little noise: at a variance of one the signal is never found
        vae.quant_conv.weight[8:] *= 0.1
        vae.quant_conv.bias[8:] = -5.0
    return vae


def gradient_loss(one: Tensor, other: Tensor) -> Tensor:
    """L1 of the differences between neighbouring pixels: keeps stars and whiskers."""
    vertical = F.l1_loss(one.diff(dim=-2), other.diff(dim=-2))
    return vertical + F.l1_loss(one.diff(dim=-1), other.diff(dim=-1))


def train_autoencoder(folder: Path, config: LoopConfig, pool_size: int = 2000) -> AutoencoderKL:
    """Train, save under ``folder/vae`` with its scaling factor measured, and return the model."""
    vae = build()
    vae.to(memory_format=torch.channels_last)
    pool = PicturePool(pool_size, Generator().manual_seed(config.seed + 1), mixed_scene)

    def loss(step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        pool.refresh(1, generator)
        target = pool.crops(BATCH, CROP, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            moments = vae.encode(target).latent_dist.parameters
            posterior = DiagonalGaussianDistribution(moments.float())
            decoded = vae.decode(posterior.sample(generator)).sample.float()
        pixel, edge = F.l1_loss(decoded, target), gradient_loss(decoded, target)
        kl = posterior.kl().mean() / (CROP // 8) ** 2
        kl_weight = KL_WEIGHT * min(1.0, max(0.0, (step - KL_START) / KL_START))
        return pixel + edge + kl_weight * kl, {"pixel": pixel.item(), "edge": edge.item(), "kl": kl.item()}

    vae.load_state_dict(train(vae, loss, config, folder / "autoencoder"))
    scale = measure_scale(vae.eval(), pool, Generator().manual_seed(config.seed + 2))
    vae.register_to_config(scaling_factor=scale)
    vae.save_pretrained(folder / "vae")
    return vae


def measure_scale(vae: AutoencoderKL, pool: PicturePool, generator: Generator) -> float:
    """One over the standard deviation of the latents."""
    latents = vae.encode(pool.crops(64, 128, generator)).latent_dist.mode()
    return round(1.0 / latents.std().item(), 5)
