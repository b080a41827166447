"""First training stage: an AutoencoderKL with a factor of 8 and eight latent channels."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Generator, Tensor

from training.pool import PicturePool, mixed_scene, picture_of
from training.settings import AutoencoderSettings
from training.sheet import write_sheet
from vitrail.demo.scenes import draw_scene

KL_START = 300  # steps without KL loss, then equally many of a ramp; from the start it would collapse the posterior
EDGE = 0.15  # difference of neighbouring values in [0, 1] above which they are at an edge
MEASURED_SEED = 99  # of the pictures for measurements
SHOWN = 12  # pictures on a sheet


def build() -> AutoencoderKL:
    """Build the demo model's autoencoder with initial weights."""
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
    with (
        torch.no_grad()
    ):  # a small initial variance of the posterior; with a variance of one, training does not converge
        vae.quant_conv.weight[8:] *= 0.1
        vae.quant_conv.bias[8:] = -5.0
    return vae


def edge_loss(one: Tensor, other: Tensor) -> Tensor:
    """Compute the L1 loss of the differences between neighbouring pixels, which preserves fine structures.

    Takes two Float32[Tensor, "batch 3 Height Width"], returns Float32[Tensor, ""].
    """
    vertical = F.l1_loss(one.diff(dim=-2), other.diff(dim=-2))
    return vertical + F.l1_loss(one.diff(dim=-1), other.diff(dim=-1))


def psnr(seen: Tensor, truth: Tensor) -> float:
    """Compute the mean peak signal-to-noise ratio in dB of Float32[Tensor, "batch 3 Height Width"] in [0, 1]."""
    return float(-10 * (seen - truth).square().flatten(1).mean(dim=1).log10().mean())


def edge_psnr(seen: Tensor, truth: Tensor) -> float:
    """Compute the PSNR in dB over values that differ by more than ``EDGE`` from the one below or to the right."""
    error = (seen - truth).square()
    at_edges = [error.narrow(dim, 0, truth.shape[dim] - 1)[truth.diff(dim=dim).abs() > EDGE] for dim in (-2, -1)]
    return -10 * float(torch.cat(at_edges).mean().log10())


@functools.cache
def measured_pictures(count: int) -> Tensor:
    """Render held-out pictures of the training mix, Float32[Tensor, "count 3 128 128"] in [0, 1]."""
    return torch.stack([picture_of(MEASURED_SEED, i, draw_scene)[1] for i in range(count)]).float() / 255


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Encode to the posterior's mode and decode, Float32[Tensor, "batch 3 Height Width"] in [0, 1] to the same."""
    parts = [vae.decode(vae.encode(part * 2 - 1).latent_dist.mode()).sample for part in pictures.split(8)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Compute the reciprocal standard deviation of the latents of pictures in [0, 1]."""
    return round(1.0 / vae.encode(pictures * 2 - 1).latent_dist.mode().std().item(), 5)


class AutoencoderTask:
    """Training task of the autoencoder, on crops of drawn pictures; see ``Task``."""

    def __init__(self, settings: AutoencoderSettings):
        self.settings = settings
        torch.manual_seed(settings.loop.seed)
        self.module = (AutoencoderKL.from_pretrained(settings.start) if settings.start else build()).float().train()
        draw = functools.partial(mixed_scene, crowds=settings.crowds)
        self.pool = PicturePool(settings.pool, settings.fresh, settings.loop.seed + 1, draw)

    def loss(self, step: int, generator: Generator, dtype: torch.dtype) -> tuple[Tensor, dict[str, float]]:
        """Compute the weighted sum of L1, edge, squared and KL losses of the batch of a step.

        Args:
            step: Index of the step.
            generator: CPU generator of the step.
            dtype: Dtype of autocast.

        Returns:
            The loss, Float32[Tensor, ""], and its parts to log.
        """
        settings, device = self.settings, self.module.device
        self.pool.advance(step)
        target = self.pool.crops(settings.batch, settings.crop, generator).to(device)
        cells = (settings.crop // 8) ** 2
        noise = torch.randn(settings.batch, 8, settings.crop // 8, settings.crop // 8, generator=generator)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            moments = self.module.encode(target).latent_dist.parameters
            posterior = DiagonalGaussianDistribution(moments.float())
            decoded = self.module.decode(posterior.mean + posterior.std * noise.to(device)).sample.float()
        pixel, edge, square = F.l1_loss(decoded, target), edge_loss(decoded, target), F.mse_loss(decoded, target)
        kl = posterior.kl().mean() / cells
        kl_weight = settings.kl_weight * min(1.0, max(0.0, (step - KL_START) / KL_START))
        total = settings.pixel_weight * pixel + settings.edge_weight * edge + settings.square_weight * square
        numbers = {"pixel": pixel.item(), "edge": edge.item(), "square": square.item(), "kl": kl.item()}
        return total + kl_weight * kl, numbers

    def measure(self, weights: dict[str, Tensor], step: int, folder: Path) -> dict[str, float]:
        """Measure PSNR in dB of all pixels and at edges, and write a sheet of pictures and reconstructions.

        Args:
            weights: Averaged state of the module, on the CPU.
            step: Index of the step, for the sheet's name.
            folder: Folder of the sheets.
        """
        vae, truth = self._built(weights), measured_pictures(self.settings.measured)
        seen = reconstruct(vae, truth)
        rows = [torch.cat([truth[i : i + 6], seen[i : i + 6]]) for i in range(0, SHOWN, 6)]
        write_sheet(torch.cat(rows), 6, folder / f"step-{step:06d}.png")
        return {"psnr": round(psnr(seen, truth), 3), "edge_psnr": round(edge_psnr(seen, truth), 3)}

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the averaged autoencoder as a diffusers folder, with its scaling factor measured."""
        vae = self._built(weights)
        vae.register_to_config(scaling_factor=scaling_factor(vae, measured_pictures(self.settings.measured)))
        vae.save_pretrained(folder)

    def _built(self, weights: dict[str, Tensor]) -> AutoencoderKL:
        vae = AutoencoderKL.from_config(self.module.config).eval()
        vae.load_state_dict(weights)
        return vae
