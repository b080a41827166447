"""Stage three: text encoder and U-Net, trained together on latents with v-prediction."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from training.loop import LoopConfig, train
from training.tokenizer import MAX_LENGTH, build_tokenizer
from vitrail.backbones.demo.scenes import BASE_SIZE, Scene, draw_scene, render

BATCH = 16
DROP_TEXT = 0.1
SHORT_CAPTION = 0.1  # share of captions that do not name the background


def build_unet() -> UNet2DConditionModel:
    """The demo model's U-Net, untrained; ``attention_head_dim`` is the number of heads in diffusers."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(2, 4, 8),
    )


def build_text_encoder(vocab_size: int, start: int, end: int) -> CLIPTextModel:
    """A CLIP text model of two layers, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=128,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """The scheduler that is saved with the model; nothing in it clips latents."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # starts at pure noise, so few steps suffice
    )


class LatentPool:
    """Scaled latents of drawn pictures in memory, renewed a little at every step."""

    def __init__(self, size: int, vae: AutoencoderKL, generator: Generator):
        self._vae, self._next = vae, 0
        self.scenes: list[Scene] = [draw_scene(generator) for _ in range(size)]
        chunks = [self.scenes[i : i + 32] for i in range(0, size, 32)]
        self.latents: Tensor = torch.cat([self._encode(chunk, generator) for chunk in chunks])

    @torch.no_grad()
    def _encode(self, scenes: list[Scene], generator: Generator) -> Tensor:
        pictures = torch.stack([render(scene, BASE_SIZE, BASE_SIZE, generator) for scene in scenes])
        posterior = self._vae.encode(pictures * 2 - 1).latent_dist
        return posterior.mode() * self._vae.config.scaling_factor

    def refresh(self, count: int, generator: Generator) -> None:
        """Draw and encode ``count`` new pictures over the oldest."""
        scenes = [draw_scene(generator) for _ in range(count)]
        for scene, latents in zip(scenes, self._encode(scenes, generator), strict=True):
            self.scenes[self._next], self.latents[self._next] = scene, latents
            self._next = (self._next + 1) % len(self.scenes)

    def batch(self, generator: Generator) -> tuple[Tensor, list[str]]:
        """Latents, Float32[Tensor, "16 8 16 16"], and their captions."""
        chosen = torch.randint(len(self.scenes), (BATCH,), generator=generator)
        draws = torch.rand(BATCH, generator=generator).tolist()
        return self.latents[chosen], [
            self._caption(self.scenes[i], draw) for i, draw in zip(chosen.tolist(), draws, strict=True)
        ]

    @staticmethod
    def _caption(scene: Scene, draw: float) -> str:
        if draw < DROP_TEXT:
            return ""
        if draw < DROP_TEXT + SHORT_CAPTION and scene.placements:
            return " ".join(scene.caption.split()[: 1 + len(scene.placements[0].name.split("-"))])
        return scene.caption


def train_denoiser(folder: Path, config: LoopConfig, pool_size: int = 3000) -> None:
    """Train both networks; each checkpoint also writes an ordinary diffusers folder, ``folder/model``."""
    tokenizer = build_tokenizer(folder / "tokenizer")
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    torch.manual_seed(config.seed)
    unet = build_unet()
    unet.set_attn_processor(AttnProcessor())  # at these sizes faster on CPU than the fused kernel
    text = build_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
    networks = nn.ModuleDict({"unet": unet, "text_encoder": text})
    scheduler = build_scheduler()
    signal = scheduler.alphas_cumprod.sqrt().view(-1, 1, 1, 1)
    noise_scale = (1 - scheduler.alphas_cumprod).sqrt().view(-1, 1, 1, 1)
    pool = LatentPool(pool_size, vae, Generator().manual_seed(config.seed + 1))

    def loss(step: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        pool.refresh(1, generator)
        latents, captions = pool.batch(generator)
        tokens = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(signal), (BATCH,), generator=generator)
        noisy = signal[timesteps] * latents + noise_scale[timesteps] * noise
        target = signal[timesteps] * noise - noise_scale[timesteps] * latents
        with torch.autocast("cpu", torch.bfloat16):
            context = text(tokens.input_ids).last_hidden_state
            output = unet(noisy, timesteps, context).sample
        return F.mse_loss(output.float(), target), {}

    def save(weights: dict[str, Tensor], step: int) -> None:
        split = {
            part: {k.removeprefix(part + "."): v for k, v in weights.items() if k.startswith(part + ".")}
            for part in networks
        }
        copies = {"unet": build_unet(), "text_encoder": CLIPTextModel(text.config)}
        for part, copy in copies.items():
            copy.load_state_dict(split[part])
            copy.half().save_pretrained(folder / "model" / part, variant=None)
        tokenizer.save_pretrained(folder / "model" / "tokenizer")
        scheduler.save_pretrained(folder / "model" / "scheduler")

    train(networks, loss, config, folder / "denoiser", on_save=save)
