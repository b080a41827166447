"""Stable Diffusion 3: a transformer with joint attention of picture and text, trained by flow matching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from attrs import frozen

from vitrail.backbones.attention.cross_attention import eager
from vitrail.backbones.attention.joint_attention_maps import capture_joint_maps, check_blocks
from vitrail.backbones.conditioning.encoded import CapturedTokens, Conditioning, Given, branches_of
from vitrail.backbones.conditioning.words import content_tokens, words_of
from vitrail.backbones.loading.adoption import SCHEDULER, VAES
from vitrail.backbones.model_family import ENCODER, POOLED, TEXT, TOKENIZER, PipelinePart
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.step import Step


@frozen
class SD3Family:
    """Stable Diffusion 3 and 3.5, medium and large, with or without T5."""

    upcasts: ClassVar[bool] = False
    callback_inputs: ClassVar[tuple[str, ...]] = (
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    parts: ClassVar[tuple[PipelinePart, ...]] = (
        PipelinePart("transformer", ["SD3Transformer2DModel"], "load it"),
        PipelinePart("vae", VAES, "load it"),
        SCHEDULER,
        PipelinePart("text_encoder", ENCODER, encodes=True),
        PipelinePart("tokenizer", TOKENIZER, encodes=True),
        PipelinePart("text_encoder_2", ENCODER, encodes=True),
        PipelinePart("tokenizer_2", TOKENIZER, encodes=True),
        PipelinePart("text_encoder_3", ENCODER),
        PipelinePart("tokenizer_3", TOKENIZER),
    )

    def network(self, pipe: Any) -> nn.Module:
        """Return the transformer."""
        transformer: nn.Module = pipe.transformer
        return transformer

    def check(self, pipe: Any) -> None:
        """Refuse a transformer for another latent space than the VAE's.

        Raises:
            CapabilityError: If their numbers of channels differ.
        """
        config, latent = pipe.transformer.config, pipe.vae.config.latent_channels
        if config.in_channels != latent:
            raise CapabilityError(
                f"the transformer takes {config.in_channels} channels, the VAE has {latent}: not served"
            )

    def serves(self, pipe: Any) -> frozenset[str]:
        """Return the fields of ``Extras`` that it serves: text, as embeddings or words; ``joint_attention_kwargs``."""
        return frozenset((*TEXT, *POOLED, "joint_attention_kwargs"))

    def check_attention(self, pipe: Any, request: AttentionRequest) -> None:
        """Refuse blocks that the transformer does not have, and layers named by halvings, of which it has none."""
        if request.halvings is not None:
            raise CapabilityError(
                "halvings: the blocks of a transformer all have the same cells; leave it out, or choose 'blocks'"
            )
        check_blocks(pipe.transformer, request.blocks)

    def max_view(self, pipe: Any) -> int:
        """Return the side of the table of positional embeddings, in latent cells; None would be any size."""
        config = pipe.transformer.config
        return int(config.pos_embed_max_size * config.patch_size)

    def timestep_options(self, pipe: Any, scheduler: Scheduler, height: int, width: int) -> dict[str, object]:
        """Return the shift ``mu`` of a scheduler with dynamic shifting, for the whole canvas.

        Linear in the number of patches, through
        (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift); Esser et al., 2024,
        https://arxiv.org/abs/2403.03206, sec. 5.3.2, as diffusers' schedulers are configured.

        Args:
            pipe: Gives the patch size.
            scheduler: Gives the line.
            height: Height of the latents, cells.
            width: Width of the latents, cells.
        """
        config: Any = scheduler.config
        if not config.get("use_dynamic_shifting", False):
            return {}
        patch = pipe.transformer.config.patch_size
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
        slope = (last - first) / (high - low)
        return {"mu": (height // patch) * (width // patch) * slope + first - slope * low}

    def first_step(self, num_steps: int, strength: float) -> int:
        """Return the number of steps that a run from a picture skips, rounded down."""
        return int(num_steps - min(num_steps * strength, num_steps))

    def condition(
        self, pipe: Any, inputs: Inputs, device: torch.device, request: AttentionRequest | None
    ) -> Conditioning:
        """Encode text by the pipeline's own ``encode_prompt``; see ``ModelFamily.condition``."""
        content = content_tokens(pipe, inputs.prompt, request)
        words = [w.positions for w in words_of(pipe, inputs.prompt)] if request is not None and request.each else ()
        given = self._text(pipe, inputs, device)
        tokens = CapturedTokens(content=content, words=words)
        return Conditioning(given=given, tokens=tokens, request=request, inputs=inputs)

    def _text(self, pipe: Any, inputs: Inputs, device: torch.device) -> list[Given]:
        extras = inputs.extras
        prompt = inputs.prompt if extras.prompt_embeds is None else None
        negative = inputs.negative_prompt if extras.negative_prompt_embeds is None else None
        words = {name: getattr(extras, name) for name in (*TEXT, *POOLED)}
        cond, uncond, pooled, negative_pooled = pipe.encode_prompt(
            prompt=prompt,
            prompt_2=None,
            prompt_3=None,
            negative_prompt=negative,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=inputs.guided,
            lora_scale=extras.lora_scale,
            **words,
        )
        if not inputs.guided:
            uncond = negative_pooled = None
        return [
            branches_of("encoder_hidden_states", uncond, cond),
            branches_of("pooled_projections", negative_pooled, pooled),
        ]

    def forward(
        self, pipe: Any, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: Conditioning
    ) -> ModelOutput:
        """Run one forward of the transformer; odd sides are padded and the output is cropped.

        See ``ModelFamily.forward`` for the arguments.
        """
        transformer, dtype = pipe.transformer, rows.model_input.dtype
        given = {name: value.to(transformer.dtype) for name, value in conditioning.rows(rows).items()}
        latents = pad_to(rows.model_input.to(transformer.dtype), transformer.config.patch_size)
        arguments: dict[str, Any] = {"timestep": timestep.to(latents.device).expand(len(latents)), **given}
        extra = conditioning.inputs.extras.joint_attention_kwargs
        if extra is not None:
            arguments["joint_attention_kwargs"] = extra
        height, width = rows.model_input.shape[-2:]
        request, tokens = conditioning.request, conditioning.tokens_of(rows)
        if not rows.capture or request is None or not tokens.content:
            output = conditioning.called(transformer, rows)(latents, return_dict=False, **arguments)[0]
            return ModelOutput(output[..., :height, :width].to(dtype), None, bool(tokens.content))
        batch = len(latents) // len(rows.branches)
        wanted = [row * batch + i for row in rows.capture for i in range(batch)]
        plain = eager(transformer)
        words = tokens.words if rows.words else ()
        with capture_joint_maps(plain, request.blocks, wanted, tokens.content, request.over, words) as maps:
            output = plain(latents, return_dict=False, **arguments)[0]
        size = latents.shape[-2:]
        layers = {number: one[..., :height, :width] for number, one in maps.each(size).items()}
        by_word = maps.by_word(size)[..., :height, :width] if rows.words else None
        mean = maps.mean(size)[..., :height, :width]
        return ModelOutput(output[..., :height, :width].to(dtype), mean, layers=layers, words=by_word)

    def callback_tensors(
        self, pipe: Any, conditioning: Conditioning, step: Step, guided: bool
    ) -> dict[str, CallbackValue]:
        """Return the embeddings and pooled embeddings of the text; see ``ModelFamily.callback_tensors``."""
        text, pooled = (conditioning.both(name, guided) for name in ("encoder_hidden_states", "pooled_projections"))
        return {
            "prompt_embeds": text,
            "negative_prompt_embeds": text[:1] if guided else None,
            "pooled_prompt_embeds": pooled,
            "negative_pooled_prompt_embeds": pooled[:1] if guided else None,
        }


def pad_to(latents: Tensor, multiple: int) -> Tensor:
    """Pad latents at the bottom and right to multiples of a number, by repeating the last row and column.

    Args:
        latents: Float32[Tensor, "rows channels h w"].
        multiple: E.g. the patch size of a transformer.
    """
    down, right = -latents.shape[-2] % multiple, -latents.shape[-1] % multiple
    return F.pad(latents, (0, right, 0, down), mode="replicate") if down or right else latents
