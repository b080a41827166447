"""Third training stage: text encoder and U-Net, trained jointly on latents with v-prediction."""

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Generator, Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from training.pool import PicturePool
from training.settings import DenoiserSettings
from training.sheet import write_sheet
from training.tokenizer import MAX_LENGTH, build_tokenizer
from vitrail.demo.judge import Judge
from vitrail.demo.scenes import Scene, draw_scene
from vitrail.experiments.spec.experiment_file import scene as prompt_of

MEASURED_STEPS = 25  # sampling steps of measurements
MEASURED_SCALE = 3.0  # guidance scale of measurements
SHOWN = 16  # pictures on a sheet
AT_ONCE = 8  # pictures per batch of encoding and sampling


def build_unet() -> UNet2DConditionModel:
    """Build the demo model's U-Net with initial weights; ``attention_head_dim`` is the number of heads in diffusers."""
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
    """Build a CLIP text model of two layers with initial weights.

    Args:
        vocab_size: Number of tokens.
        start: Id of the start token.
        end: Id of the end token, also used for padding.
    """
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
    """Build the scheduler that is saved with the model; it does not clip latents."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",  # starts at the last timestep, so few steps suffice
    )


class LatentPool:
    """Scaled latents of a pool's pictures, encoded again where pictures change."""

    def __init__(self, pictures: PicturePool, vae: AutoencoderKL):
        self._pictures, self._vae = pictures, vae
        self.latents: Tensor | None = None

    @torch.no_grad()
    def advance(self, step: int) -> None:
        """Advance the pool of pictures to a step and encode the changed ones."""
        changed = torch.tensor(self._pictures.advance(step), dtype=torch.long)
        for places in changed.split(AT_ONCE):
            pictures = self._pictures.pictures[places].to(self._vae.device, torch.float32) / 127.5 - 1
            latents = self._vae.encode(pictures).latent_dist.mode().cpu() * self._vae.config.scaling_factor
            if self.latents is None:
                self.latents = latents.new_zeros(len(self._pictures.scenes), *latents.shape[1:])
            self.latents[places] = latents

    def batch(self, count: int, generator: Generator) -> tuple[Tensor, list[Scene]]:
        """Draw latents, Float32[Tensor, "count 8 16 16"], and their scenes."""
        assert self.latents is not None
        chosen = torch.randint(len(self.latents), (count,), generator=generator)
        return self.latents[chosen], [self._pictures.scenes[i] for i in chosen.tolist()]


def caption(scene: Scene, draw: float, settings: DenoiserSettings) -> str:
    """Return a scene's caption, its object alone, or an empty text.

    Args:
        scene: The scene.
        draw: A uniform random number in [0, 1) that selects the form.
        settings: Probabilities of the empty text and of the object alone.
    """
    if draw < settings.drop_text:
        return ""
    if draw < settings.drop_text + settings.short_caption and scene.placements:
        return " ".join(scene.caption.split()[: 1 + len(scene.placements[0].name.split("-"))])
    return scene.caption


class DenoiserTask:
    """Training task of U-Net and text encoder on latents, with v-prediction; see ``Task``.

    The loss is weighted by min(SNR, cap) / (SNR + 1), the min-SNR weight of v-prediction (Hang et al., 2023,
    https://arxiv.org/abs/2303.09556, sec. 3.4).
    """

    def __init__(self, settings: DenoiserSettings, device: torch.device):
        self.settings, self._device = settings, device
        torch.manual_seed(settings.loop.seed)
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer = build_tokenizer(Path(folder))
        self.module = nn.ModuleDict(self._networks())
        draw = functools.partial(draw_scene, close_up=settings.close_up, empty=settings.empty)
        pictures = PicturePool(settings.pool, settings.fresh, settings.loop.seed + 1, draw)
        self._vae = AutoencoderKL.from_pretrained(settings.vae).float().eval().to(device)
        self._pool = LatentPool(pictures, self._vae)
        alphas = build_scheduler().alphas_cumprod
        self._signal, self._noise = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
        snr = alphas / (1 - alphas)
        self._weights = snr.clamp(max=settings.min_snr) / (snr + 1) if settings.min_snr else torch.ones_like(snr)

    def loss(self, step: int, generator: Generator, dtype: torch.dtype) -> tuple[Tensor, dict[str, float]]:
        """Compute the weighted squared error of the batch of a step.

        Args:
            step: Index of the step.
            generator: CPU generator of the step.
            dtype: Dtype of autocast.

        Returns:
            The loss, Float32[Tensor, ""], and the unweighted error to log.
        """
        settings, device = self.settings, self._device
        self._pool.advance(step)
        latents, scenes = self._pool.batch(settings.batch, generator)
        draws = torch.rand(settings.batch, generator=generator).tolist()
        tokens = self._tokens([caption(s, draw, settings) for s, draw in zip(scenes, draws, strict=True)])
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(len(self._signal), (settings.batch,), generator=generator)
        signal, scale, weights = self._signal[timesteps], self._noise[timesteps], self._weights[timesteps]
        noisy, target = signal * latents + scale * noise, signal * noise - scale * latents
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            context = self.module["text_encoder"](tokens.to(device)).last_hidden_state
            output = self.module["unet"](noisy.to(device), timesteps.to(device), context).sample
        errors = (output.float() - target.to(device)).square().mean(dim=(1, 2, 3))
        return (errors * weights.to(device)).mean(), {"error": errors.mean().item()}

    @torch.no_grad()
    def measure(self, weights: dict[str, Tensor], step: int, folder: Path) -> dict[str, float]:
        """Measure the shares of samples at the training size with the right class and with one object; write a sheet.

        Args:
            weights: Averaged state of the module, on the CPU.
            step: Index of the step, for the sheet's name.
            folder: Folder of the sheets.
        """
        pipe, judge, count = self._pipeline(weights), Judge.load(), self.settings.measured
        named = [prompt_of(i) for i in range(count)]
        pictures = torch.cat([self._sample(pipe, named, i) for i in range(0, count, AT_ONCE)])
        write_sheet(pictures[:SHOWN], 8, folder / f"step-{step:06d}.png")
        found = [judge.detect(picture) for picture in pictures]
        right = [bool(seen) and seen[0].name == name for seen, (name, _) in zip(found, named, strict=True)]
        return {
            "right_class": round(sum(right) / count, 4),
            "one_object": round(sum(len(seen) == 1 for seen in found) / count, 4),
        }

    def export(self, weights: dict[str, Tensor], folder: Path) -> None:
        """Write U-Net, text encoder, tokenizer and scheduler as parts of a diffusers folder."""
        networks = self._loaded(weights)
        for part, network in networks.items():
            network.save_pretrained(folder / part)
        self._tokenizer.save_pretrained(folder / "tokenizer")
        build_scheduler().save_pretrained(folder / "scheduler")

    def _networks(self) -> dict[str, nn.Module]:
        start = Path(self.settings.start)
        if self.settings.start:
            unet = UNet2DConditionModel.from_pretrained(start / "unet").float().train()
            text = CLIPTextModel.from_pretrained(start / "text_encoder").float().train()
        else:
            ids = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
            unet, text = build_unet(), build_text_encoder(len(self._tokenizer), *ids)
        unet.set_attn_processor(AttnProcessor())  # faster on a CPU than the fused kernel at these sizes
        return {"unet": unet, "text_encoder": text}

    def _loaded(self, weights: dict[str, Tensor]) -> dict[str, nn.Module]:
        """Copy both networks with other weights, on the CPU."""
        copies: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel.from_config(self.module["unet"].config).eval(),
            "text_encoder": CLIPTextModel(self.module["text_encoder"].config).eval(),
        }
        for part, copy in copies.items():
            own = {k.removeprefix(part + "."): v for k, v in weights.items() if k.startswith(part + ".")}
            copy.load_state_dict(own)
        return copies

    def _pipeline(self, weights: dict[str, Tensor]) -> StableDiffusionPipeline:
        parts = self._loaded(weights)
        pipe = StableDiffusionPipeline(
            vae=self._vae,
            tokenizer=self._tokenizer,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(self._device)

    @staticmethod
    def _sample(pipe: StableDiffusionPipeline, named: list[tuple[str, str]], first: int) -> Tensor:
        chosen = range(first, min(first + AT_ONCE, len(named)))
        return pipe(
            [named[i][1] for i in chosen],
            generator=[Generator().manual_seed(1000 + i) for i in chosen],
            num_inference_steps=MEASURED_STEPS,
            guidance_scale=MEASURED_SCALE,
            output_type="pt",
        ).images.cpu()

    def _tokens(self, captions: list[str]) -> Tensor:
        said = self._tokenizer(
            captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        )
        return said.input_ids
