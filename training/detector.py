"""Second training stage: the judge, a detector trained on drawn scenes, some of them passed through the autoencoder."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from attrs import asdict
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Generator, Tensor

from training.crops import CROP, CropPool, Soften
from training.settings import JudgeSettings
from vitrail.demo.judge import STRIDE, JudgeConfig, JudgeNetwork
from vitrail.demo.scenes import OBJECTS

MEASURED_SEED = 99  # of the crops for measurements
FUZZY = 1.3  # factor beyond the band within which a detection is neither right nor wrong
LATENT_NOISE = 0.35  # maximum noise on softened pictures' latents, in standard deviations, which distorts shapes


def load_soften(folder: Path) -> Soften | None:
    """Load the autoencoder as a function that softens pictures; None if the folder has no autoencoder."""
    if not (folder / "config.json").exists():
        return None
    vae = AutoencoderKL.from_pretrained(folder).eval()

    @torch.no_grad()
    def soften(picture: Tensor, generator: Generator) -> Tensor:
        latents = vae.encode(picture[None] * 2 - 1).latent_dist.mode()
        scale = LATENT_NOISE * torch.rand((), generator=generator).square() / vae.config.scaling_factor
        noisy = latents + scale * torch.randn(latents.shape, generator=generator)
        return (vae.decode(noisy).sample[0] / 2 + 0.5).clamp(0, 1)

    return soften


def augment(crops: Tensor, generator: Generator) -> Tensor:
    """Augment crops by random blur, tint, contrast, brightness and noise, Float32[Tensor, "batch 3 128 128"]."""
    count = len(crops)
    draw = torch.rand(5, count, 1, 1, 1, generator=generator)
    sigma = 0.05 + 1.25 * (draw[0] - 0.4).clamp(min=0) / 0.6  # 40 % are not blurred
    taps = torch.exp(-torch.arange(-3, 4).view(1, 1, 1, 7).square() / (2 * sigma.square()))
    kernel = (taps / taps.sum(dim=-1, keepdim=True)).expand(count, 3, 1, 7).reshape(-1, 1, 1, 7)
    flat = crops.reshape(1, -1, *crops.shape[-2:])
    flat = F.conv2d(F.pad(flat, (3, 3, 3, 3), mode="replicate"), kernel, groups=3 * count)
    crops = F.conv2d(flat, kernel.transpose(2, 3), groups=3 * count).view_as(crops)
    tint = 1 + 0.12 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    contrast, light = 0.8 + 0.4 * draw[1], 0.16 * (draw[2] - 0.5)
    noise = torch.randn(crops.shape, generator=generator) * 0.05 * (draw[3] - 0.5).clamp(min=0)
    return ((crops - 0.5) * tint * contrast + 0.5 + light + noise).clamp(0, 1)


def aims(boxes: Tensor, config: JudgeConfig, cells: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the network's training targets, after "Objects as Points" (https://arxiv.org/abs/1904.07850, sec. 3).

    Args:
        boxes: Class, size, center y, center x, kind, Float32[Tensor, "batch objects 5"].
        config: Settings of the judge, for the band.
        cells: Side of the heat maps in cells.

    Returns:
        Heat, Float32[Tensor, "batch classes cells cells"]; cells where heat is neither right nor wrong,
        Bool[Tensor, "batch cells cells"]; log-size and offset, Float32[Tensor, "batch 3 cells cells"]; their weight,
        Float32[Tensor, "batch cells cells"].
    """
    name, size, y, x, kind = (part[..., None, None] for part in boxes.unbind(-1))
    inside = (size >= config.band_low) & (size <= config.band_high)
    near = (size >= config.band_low / FUZZY) & (size <= config.band_high * FUZZY)
    wanted, fuzzy = (kind == 1) & inside, (kind >= 0) & near & ~((kind == 1) & inside)
    rows, columns = torch.arange(cells).view(-1, 1), torch.arange(cells).view(1, -1)
    gap = (rows - (y / STRIDE).floor()).square() + (columns - (x / STRIDE).floor()).square()
    sigma = (0.15 * size / STRIDE).clamp(min=0.5)
    bumps = torch.exp(-gap / (2 * sigma.square())) * wanted
    heat = torch.zeros(len(boxes), len(config.classes), cells, cells)
    heat.scatter_reduce_(1, name.long().expand_as(bumps), bumps, "amax")
    ignored = (fuzzy & (gap.sqrt() < 0.45 * size / STRIDE + 0.7)).any(dim=1)
    weight, owner = bumps.max(dim=1, keepdim=True)
    log_size = (size / (config.band_low * config.band_high) ** 0.5).log().expand_as(bumps)
    offsets = [y / STRIDE - rows - 0.5 + 0 * columns, x / STRIDE - columns - 0.5 + 0 * rows]
    numbers = torch.cat([part.gather(1, owner) for part in (log_size, *offsets)], dim=1)
    return heat, ignored, numbers, torch.where(weight > 0.3, weight, 0.0)[:, 0]


def detector_loss(heat: Tensor, log_size: Tensor, offset: Tensor, wanted: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Compute the penalty-reduced focal loss of the heat maps, and the L1 loss of size and offset at the centres.

    Args:
        heat: Class logits, Float32[Tensor, "batch classes cells cells"].
        log_size: Float32[Tensor, "batch cells cells"].
        offset: Float32[Tensor, "batch 2 cells cells"].
        wanted: Targets from ``aims``.

    Returns:
        Both losses, each Float32[Tensor, ""].
    """
    target, ignored, numbers, weight = wanted
    sure = heat.sigmoid()
    right = F.logsigmoid(heat) * (1 - sure).square()
    wrong = F.logsigmoid(-heat) * sure.square() * (1 - target).pow(4) * ~ignored[:, None]
    count = (target == 1).sum().clamp(min=1)
    focal = -torch.where(target == 1, right, wrong).sum() / count
    said = torch.cat([log_size[:, None], offset], dim=1)
    share = torch.tensor([2.0, 0.5, 0.5]).view(1, 3, 1, 1)
    return focal, ((said - numbers).abs() * share * weight[:, None]).sum() / weight.sum().clamp(min=1)


def save_judge(config: JudgeConfig, weights: dict[str, Tensor], folder: Path) -> None:
    """Write ``config.json`` and ``judge.safetensors``, the latter in half precision.

    Args:
        config: Settings of the judge.
        weights: State of its network.
        folder: Target folder; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_file(half, folder / "judge.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")


class JudgeTask:
    """Training task of the detector on crops of drawn scenes; see ``Task``."""

    def __init__(self, settings: JudgeSettings, device: torch.device):
        self._settings, self._device, self._shape = settings, device, JudgeConfig(classes=OBJECTS)
        torch.manual_seed(settings.loop.seed)
        self.module = JudgeNetwork(self._shape)
        soften = load_soften(Path(settings.vae)) if settings.vae else None
        self._pool = CropPool(settings.pool, self._shape, settings.loop.seed + 1, soften)

    def loss(self, step: int, generator: Generator, dtype: torch.dtype) -> tuple[Tensor, dict[str, float]]:
        """Compute the sum of focal and L1 loss of the batch of a step.

        Args:
            step: Index of the step.
            generator: CPU generator of the step.
            dtype: Dtype of autocast.

        Returns:
            The loss, Float32[Tensor, ""], and its parts to log.
        """
        self._pool.advance(step)
        crops, boxes = self._pool.batch(self._settings.batch, generator)
        device = self._device
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            said = self.module(augment(crops, generator).to(device))
        wanted = tuple(part.to(device) for part in aims(boxes, self._shape, said.heat.shape[-1]))
        focal, placed = detector_loss(said.heat.float(), said.log_size.float(), said.offset.float(), wanted)
        return focal + placed, {"focal": focal.item(), "placed": placed.item()}

    @torch.no_grad()
    def measure(self, weights: dict[str, Tensor], step: int, folder: Path) -> dict[str, float]:
        """Measure both losses on held-out crops.

        Args:
            weights: Averaged state of the module, on the CPU.
            step: Unused.
            folder: Unused.
        """
        network = JudgeNetwork(self._shape).eval()
        network.load_state_dict(weights)
        count = self._settings.measured
        pool = CropPool(count, self._shape, MEASURED_SEED)
        pool.advance(0)
        crops, boxes = pool.batch(count, Generator().manual_seed(MEASURED_SEED))
        said = network(crops)
        focal, placed = detector_loss(said.heat, said.log_size, said.offset, aims(boxes, self._shape, CROP // STRIDE))
        return {"focal": round(focal.item(), 4), "placed": round(placed.item(), 4)}

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write the averaged judge as ``config.json`` and ``judge.safetensors``."""
        save_judge(self._shape, weights, folder)
