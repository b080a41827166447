"""Stable Diffusion 1.x and 2.x, and every pipeline of that class, the demo model among them."""

from __future__ import annotations

import copy
import hashlib
import inspect
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from attrs import frozen

from vitrail.core.log import logger
from vitrail.core.protocols import AttentionRequest, Predicted, Rows
from vitrail.errors import CapabilityError, ConfigError, ModelError, nearest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.backbones.strip_ops import Exchange
    from vitrail.core.noise_schedule import Scheduler
    from vitrail.core.step import Step

SAMPLED = 16  # values of a parameter in a fingerprint
OFFERS = frozenset({"attention-maps", "convolutions", "cross-attention", "vae"})


@frozen(kw_only=True)
class StableDiffusion:
    """Where a model lies and how to load it."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    offers: ClassVar[frozenset[str]] = OFFERS
    folder: Path  # in diffusers' layout

    def load(self, device: str | None = None, dtype: str = "float32") -> StableDiffusionBackbone:
        """Load the weights; only safetensors, only local files.

        Args:
            device: A torch device; the accelerator if there is one, else the CPU.
            dtype: Of the networks, e.g. ``float16``.

        Raises:
            ConfigError: If the device is not there.
            ModelError: If a part of the pipeline is missing or broken.
        """
        import torch
        from diffusers import StableDiffusionPipeline

        place = find_device(device)
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                self.folder, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model {self.folder.name!r} cannot be loaded: {error}") from error
        return StableDiffusionBackbone(pipe.to(place))


def find_device(name: str | None) -> torch.device:
    """The named device, or the default one, after a try to use it.

    Raises:
        ConfigError: If torch does not know it or cannot use it here.
    """
    import torch

    try:
        return torch.empty(0, device=name or default_device()).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"no device {name!r} here: {reason}; {default_device()!r} can be used") from error


def default_device() -> str:
    """The accelerator if torch sees one, else the CPU."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


@frozen(eq=False)
class Conditioning:
    """Text of both branches.

    Attributes:
        embeds: Float32[Tensor, "1 tokens width"] by branch.
        content: Positions of the content tokens of the prompt.
        request: The attention maps wanted, if any.
    """

    embeds: dict[str, Tensor]
    content: tuple[int, ...]
    request: AttentionRequest | None


class StableDiffusionBackbone:
    """A loaded pipeline behind the ``Backbone`` protocol; nothing of the pipeline is changed."""

    offers = OFFERS

    def __init__(self, pipe: Any):
        self._pipe = pipe
        self._lock = threading.Lock()  # ranks that are threads may share a backbone
        self.latent_channels: int = pipe.unet.config.in_channels
        self.vae_scale_factor: int = pipe.vae_scale_factor
        self.native_size: int = pipe.unet.config.sample_size

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return cast("torch.device", self._pipe._execution_device)

    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """A copy of the pipeline's scheduler, or another class with the same noise schedule."""
        import diffusers

        current = self._pipe.scheduler
        if name is None:
            return cast("Scheduler", copy.deepcopy(current))
        known = [n for n in dir(diffusers) if n.endswith("Scheduler")]
        if name not in known:
            raise ConfigError(f"no scheduler named {name!r}{nearest(name, known)}")
        cls = getattr(diffusers, name)
        options = {}
        if "clip_sample" in inspect.signature(cls.__init__).parameters and "clip_sample" not in current.config:
            options["clip_sample"] = False  # a default for pixels that would ruin latents
        try:
            scheduler = cls.from_config(current.config, **options)
        except ImportError as error:
            raise ConfigError(f"scheduler {name!r} needs a package that is not installed: {error}") from error
        _refuse_other_prediction(current, scheduler, name)
        return cast("Scheduler", scheduler)

    def fingerprint(self) -> str:
        """A digest of some values of every parameter, so that it costs little."""
        digest = hashlib.sha256()
        for name, part in (("unet", self._pipe.unet), ("vae", self._pipe.vae), ("text", self._pipe.text_encoder)):
            for key, value in part.state_dict().items():
                some = value.flatten()[:: max(1, value.numel() // SAMPLED)][:SAMPLED].double().tolist()
                digest.update(f"{name} {key} {tuple(value.shape)} {value.dtype} {some}".encode())
        return digest.hexdigest()

    def check_attention(self, request: AttentionRequest) -> None:
        """Refuse up blocks that the U-Net does not have."""
        from vitrail.backbones.attention import cross_attentions

        cross_attentions(self._pipe.unet, request.layers)

    def encode_prompt(self, prompt: str, negative_prompt: str, request: AttentionRequest | None) -> Conditioning:
        """Embeddings of both branches, by the pipeline's own ``encode_prompt``."""
        skip = frozenset[str]() if request is None else request.skip_words
        with self._lock:  # a tokenizer keeps its padding as state
            cond, uncond = self._pipe.encode_prompt(prompt, self.device, 1, True, negative_prompt)
            content = self._content(prompt, skip)
        return Conditioning({"cond": cond, "uncond": uncond}, content, request)

    def _content(self, prompt: str, skip: frozenset[str]) -> tuple[int, ...]:
        tokenizer = self._pipe.tokenizer
        tokens = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
        words = [tokenizer.decode([token]).strip().lower() for token in tokens]
        special = set(tokenizer.all_special_ids)
        return tuple(
            i
            for i, (token, word) in enumerate(zip(tokens, words, strict=True))
            if token not in special | {None} and word not in skip and any(letter.isalnum() for letter in word)
        )

    def predict(self, rows: Rows, step: Step, timestep: Tensor, conditioning: Conditioning) -> Predicted:
        """One forward of the U-Net, with the wanted attention maps computed beside it."""
        import torch

        from vitrail.backbones.attention import capture_maps

        unet, latents = self._pipe.unet, rows.model_input
        batch = len(latents) // len(rows.branches)
        text = torch.cat([conditioning.embeds[branch].expand(batch, -1, -1) for branch in rows.branches])
        arguments = (latents.to(unet.dtype), timestep, text.to(unet.dtype))
        if not rows.capture or conditioning.request is None or not conditioning.content:
            output = unet(*arguments, return_dict=False)[0]
            return Predicted(output.to(latents.dtype), None, bool(conditioning.content))
        wanted = [row * batch + i for row in rows.capture for i in range(batch)]
        with capture_maps(unet, conditioning.request.layers, wanted, conditioning.content) as maps:
            output = unet(*arguments, return_dict=False)[0]
        return Predicted(output.to(latents.dtype), maps.mean(latents.shape[-2:]))

    def decode(self, latents: Tensor, exchange: Exchange | None = None) -> Tensor:
        """A picture in [0, 1], Float32[Tensor, "1 3 Height Width"]; ranks share a large one by strips.

        A decoder with layers that cannot be cut decodes the whole picture on every rank.
        """
        from vitrail.backbones.strip_check import check_strips
        from vitrail.backbones.strip_ops import Alone
        from vitrail.backbones.strips import decode_strips, decode_whole, gather_picture

        vae, team = self._pipe.vae, exchange or Alone()
        try:
            check_strips(vae)
        except CapabilityError as error:
            logger().info("decode.replicated", reason=str(error))
            return decode_whole(vae, latents)
        own = decode_strips(vae, latents, self.native_size, team, team.rank, team.world_size)
        return gather_picture(vae, own, latents, self.native_size, team, team.world_size)

    def to_pil(self, pictures: Tensor) -> list[Image]:
        """Pictures as Pillow images, by the pipeline's own image processor."""
        processor = self._pipe.image_processor
        return cast("list[Image]", processor.numpy_to_pil(processor.pt_to_numpy(pictures)))


def _refuse_other_prediction(current: Any, other: Any, name: str) -> None:
    from vitrail.core.noise_schedule import prediction_type_of

    have, want = prediction_type_of(current), prediction_type_of(other)
    if have != want:
        raise CapabilityError(f"the model predicts {have!r}, but {name} reads {want!r}; choose another scheduler")


def quiet_libraries() -> None:
    """The libraries' own progress bars and advice would cover ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
