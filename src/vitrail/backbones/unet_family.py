"""Stable Diffusion 1.x, 2.x and XL: a U-Net with cross-attention to text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen

from vitrail.backbones.attention.cross_attention import capture_maps, cross_attentions, eager
from vitrail.backbones.conditioning.control import Control, control_of, hint_names
from vitrail.backbones.conditioning.encoded import CapturedTokens, Conditioning, Given, branches_of
from vitrail.backbones.conditioning.input_checks import adapters_of, nets_of
from vitrail.backbones.conditioning.words import content_tokens, words_of
from vitrail.backbones.loading.adoption import SCHEDULER, VAES
from vitrail.backbones.model_family import ENCODER, POOLED, TEXT, TOKENIZER, PipelinePart
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.core.geometry.views import View
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.backbone import CallbackValue
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import MicroBatch, Size, SizeConditioning
    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.step import Step

IMAGES = ("ip_adapter_image", "ip_adapter_image_embeds")
XL_CALLBACKS = (
    "add_text_embeds",
    "add_time_ids",
    "negative_pooled_prompt_embeds",
    "negative_add_time_ids",
    "add_neg_time_ids",
)
SIZES = 6  # micro-conditioning of XL: original size, crop, target size, two numbers each
UNET_PARTS = (
    PipelinePart("unet", ["UNet2DConditionModel"], "load it"),
    PipelinePart("vae", VAES, "load it"),
    SCHEDULER,
    PipelinePart("controlnet", ["ControlNetModel"]),
    PipelinePart("image_encoder", ENCODER),
    PipelinePart("text_encoder", ENCODER, encodes=True),
    PipelinePart("tokenizer", TOKENIZER, encodes=True),
)
XL_PARTS = (
    *UNET_PARTS,
    PipelinePart("text_encoder_2", ENCODER, encodes=True),
    PipelinePart("tokenizer_2", TOKENIZER, encodes=True),
)
CONTROL = ("control_image", "controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")


@frozen
class UNetFamily:
    """Pipelines with a U-Net, with or without pooled text and size conditioning (``is_xl``)."""

    is_xl: bool

    @property
    def parts(self) -> tuple[PipelinePart, ...]:
        """A U-Net, a VAE, a scheduler, and text encoders unless embeddings are given."""
        return XL_PARTS if self.is_xl else UNET_PARTS

    @property
    def upcasts(self) -> bool:
        """Whether a float16 VAE runs in float32, as in the pipelines of XL."""
        return self.is_xl

    def network(self, pipe: Any) -> nn.Module:
        """Return the U-Net."""
        unet: nn.Module = pipe.unet
        return unet

    def check(self, pipe: Any) -> None:
        """Refuse networks with inputs that are not supported: a mask, a guidance embedding, another latent space.

        Raises:
            CapabilityError: Naming the input.
        """
        config = pipe.unet.config
        latent = pipe.vae.config.latent_channels
        if config.in_channels != latent or config.out_channels != latent:
            raise CapabilityError(
                f"the U-Net takes {config.in_channels} channels and gives {config.out_channels}, the VAE has {latent}: "
                "an inpainting, upscaling or depth model, which is not served"
            )
        if config.time_cond_proj_dim is not None:
            raise CapabilityError("the U-Net is distilled for an embedded guidance scale (LCM), which is not served")
        if self.is_xl != (config.addition_embed_type == "text_time"):
            raise CapabilityError(f"the U-Net's additional embedding {config.addition_embed_type!r} is not served")
        if self.is_xl:
            _refuse_refiner(pipe)
        if config.encoder_hid_dim_type not in (None, "ip_image_proj"):
            raise CapabilityError(f"the U-Net's projection {config.encoder_hid_dim_type!r} is not served")
        controlnet = getattr(pipe, "controlnet", None)
        if controlnet is not None and any(net.config.global_pool_conditions for net in nets_of(controlnet)):
            raise CapabilityError("a control network that takes the mean over its hint is not served: views see parts")

    def serves(self, pipe: Any) -> frozenset[str]:
        """Return the names of text inputs, of pictures with an IP-Adapter, of hints with a ControlNet."""
        served = [*TEXT, "cross_attention_kwargs", *(POOLED if self.is_xl else ())]
        if adapters_of(pipe.unet):
            served += IMAGES
        if getattr(pipe, "controlnet", None) is not None:
            served += CONTROL
        return frozenset(served)

    def check_attention(self, pipe: Any, request: AttentionRequest) -> None:
        """Refuse up blocks that the U-Net does not have."""
        cross_attentions(pipe.unet, request.layers, request.halvings)

    def max_view(self, pipe: Any) -> None:
        """Return None: views may have any size."""
        return

    def timestep_options(self, pipe: Any, scheduler: Scheduler, height: int, width: int) -> dict[str, object]:
        """Return no further options: schedules do not depend on the size."""
        return {}

    def first_step(self, num_steps: int, strength: float) -> int:
        """Return the number of steps that a run from a picture skips, rounded up."""
        return num_steps - int(num_steps * strength)

    def condition(
        self, pipe: Any, inputs: Inputs, device: torch.device, request: AttentionRequest | None
    ) -> Conditioning:
        """Encode text by the pipeline's own ``encode_prompt``, IP-Adapter pictures and the ControlNet's hint.

        See ``ModelFamily.condition`` for the arguments.
        """
        control, hints = control_of(pipe, inputs, device)
        given = [*self._text(pipe, inputs, device), *_images(pipe, inputs, device), *hints]
        content = content_tokens(pipe, inputs.prompt, request)
        words = [w.positions for w in words_of(pipe, inputs.prompt)] if request is not None and request.each else ()
        tokens = CapturedTokens(content=content, words=words)
        return Conditioning(given=given, tokens=tokens, request=request, inputs=inputs, pack=control)

    def _text(self, pipe: Any, inputs: Inputs, device: torch.device) -> list[Given]:
        extras = inputs.extras
        words: dict[str, Any] = {
            "prompt": inputs.prompt if extras.prompt_embeds is None else None,
            "negative_prompt": inputs.negative_prompt if extras.negative_prompt_embeds is None else None,
            "device": device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": inputs.guided,
            "lora_scale": extras.lora_scale,
        }
        words |= {name: getattr(extras, name) for name in TEXT}
        if not self.is_xl:
            cond, uncond = pipe.encode_prompt(**words)
            return [branches_of("encoder_hidden_states", uncond if inputs.guided else None, cond)]
        words |= {name: getattr(extras, name) for name in POOLED}
        cond, uncond, pooled, negative_pooled = pipe.encode_prompt(**words)
        if not inputs.guided:
            uncond = negative_pooled = None
        return [
            branches_of("encoder_hidden_states", uncond, cond),
            branches_of("text_embeds", negative_pooled, pooled),
        ]

    def forward(
        self, pipe: Any, rows: MicroBatch, step: Step, timestep: Tensor, conditioning: Conditioning
    ) -> ModelOutput:
        """Run one forward of the U-Net; captured rows run uncompiled, so that hooks see their layers.

        See ``ModelFamily.forward`` for the arguments.
        """
        unet, dtype = pipe.unet, rows.model_input.dtype
        cut = conditioning.rows(rows)
        given = {name: _cast(value, unet.dtype) for name, value in cut.items()}
        latents = rows.model_input.to(unet.dtype)
        arguments: dict[str, Any] = {"encoder_hidden_states": given["encoder_hidden_states"]}
        added = self._added(pipe, rows, step, conditioning, given)
        if added:
            arguments["added_cond_kwargs"] = added
        control = _control_in(conditioning)
        residuals = {}
        if control is not None and control.acts(step):
            known = {k: v for k, v in added.items() if k != "image_embeds"}
            beside = arguments | ({"added_cond_kwargs": known} if known else {})
            residuals = control.residuals(pipe.controlnet, latents, step, timestep, cut, **beside)
        arguments |= residuals
        extra = conditioning.inputs.extras.cross_attention_kwargs
        if extra is not None:
            arguments["cross_attention_kwargs"] = extra
        request, tokens = conditioning.request, conditioning.tokens_of(rows)
        if not rows.capture or request is None or not tokens.content:
            output = conditioning.called(unet, rows)(latents, timestep, return_dict=False, **arguments)[0]
            return ModelOutput(output.to(dtype), None, bool(tokens.content))
        batch = len(latents) // len(rows.branches)
        wanted = [row * batch + i for row in rows.capture for i in range(batch)]
        plain = eager(unet)
        words = tokens.words if rows.words else ()
        chosen = (request.layers, wanted, tokens.content, request.over, words, request.halvings)
        with capture_maps(plain, *chosen) as maps:
            output = plain(latents, timestep, return_dict=False, **arguments)[0]
        size = latents.shape[-2:]
        by_word = maps.by_word(size) if rows.words else None
        return ModelOutput(output.to(dtype), maps.mean(size), layers=maps.each(size), words=by_word)

    @property
    def callback_inputs(self) -> tuple[str, ...]:
        """Names of the tensors in diffusers' loops with a U-Net."""
        plain = ("latents", "prompt_embeds", "negative_prompt_embeds", "image", "control_image")
        return plain + (XL_CALLBACKS if self.is_xl else ())

    def callback_tensors(
        self, pipe: Any, conditioning: Conditioning, step: Step, guided: bool
    ) -> dict[str, CallbackValue]:
        """Return text embeddings, hints, and XL's size conditioning of the whole picture.

        See ``ModelFamily.callback_tensors`` for the arguments.
        """
        text = conditioning.both("encoder_hidden_states", guided)
        found: dict[str, CallbackValue] = {
            "prompt_embeds": text,
            "negative_prompt_embeds": text[:1] if guided else None,
        }
        control = _control_in(conditioning)
        if control is not None:
            hints = [conditioning.both(name, guided) for name in hint_names(len(control.scales))]
            found["image"] = found["control_image"] = hints if len(hints) > 1 else hints[0]
        if not self.is_xl:
            return found
        pooled, sizes = conditioning.both("text_embeds", guided), conditioning.inputs.sizes[step.stage]
        known = self._known(pipe, conditioning, step)
        original, target = told(sizes, known)
        size_ids = (*original, 0, 0, *target)
        ids = torch.tensor([size_ids] * (1 + guided), dtype=pooled.dtype, device=pooled.device)
        found |= {"add_text_embeds": pooled, "negative_pooled_prompt_embeds": pooled[:1] if guided else None}
        return found | {"add_time_ids": ids, "negative_add_time_ids": ids[:1], "add_neg_time_ids": ids[:1]}

    def _known(self, pipe: Any, conditioning: Conditioning, step: Step) -> dict[Size, tuple[int, int]]:
        """Return height and width in pixels of each kind of size."""
        native = pipe.unet.config.sample_size * pipe.vae_scale_factor
        inputs = conditioning.inputs
        return {"canvas": inputs.picture(-1), "phase": inputs.picture(step.phase), "native": (native, native)}

    def _added(
        self, pipe: Any, rows: MicroBatch, step: Step, conditioning: Conditioning, given: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Return inputs besides text: pooled text, sizes and IP-Adapter embeddings."""
        added: dict[str, Any] = {}
        images = [value for name, value in given.items() if name.startswith("image_embeds.")]
        if images:
            added["image_embeds"] = images
        if self.is_xl:
            sizes = rows.sizes or conditioning.inputs.sizes[step.stage]
            factor = pipe.vae_scale_factor
            batch = len(rows.model_input) // len(rows.branches)
            known = self._known(pipe, conditioning, step)
            ids = [time_ids(sizes, view, known, factor) for view in rows.views for _ in range(batch)]
            text = given["text_embeds"]
            added |= {"text_embeds": text, "time_ids": torch.tensor(ids, dtype=text.dtype, device=text.device)}
        return added


def _control_in(conditioning: Conditioning) -> Control | None:
    """Return the weights of control hints over the steps; None without hints."""
    return conditioning.pack if isinstance(conditioning.pack, Control) else None


def _refuse_refiner(pipe: Any) -> None:
    """Refuse XL's refiner, whose U-Net takes an aesthetic score in place of the target size."""
    config, encoder, num_sizes = pipe.unet.config, pipe.text_encoder_2, SIZES
    if encoder is not None:
        beside = config.projection_class_embeddings_input_dim - encoder.config.projection_dim
        num_sizes = beside // config.addition_time_embed_dim
    if pipe.config.get("requires_aesthetics_score", False) or num_sizes != SIZES:
        raise CapabilityError(
            f"the unet of {type(pipe).__name__} is a refiner, told an aesthetic score and not the size that it should "
            "draw, which is not served; adopt the base pipeline, and give its picture to the refiner's own pipeline"
        )


def told(sizes: SizeConditioning, known: Mapping[Size, tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the original and the target size that the network is told, pixels; see ``time_ids``."""
    (height, width), (tall, wide) = known[sizes.original], known[sizes.target]
    return (sizes.factor * height, sizes.factor * width), (sizes.factor * tall, sizes.factor * wide)


def time_ids(
    sizes: SizeConditioning, view: View, known: Mapping[Size, tuple[int, int]], factor: int
) -> tuple[int, int, int, int, int, int]:
    """Return original size, crop offset and target size of a view; pixels, height first.

    Args:
        sizes: Size conditioning of the method.
        view: The view; a window has its own crop offset, 0 at least also where it leaves the canvas, a strided view
            shows the whole picture and has (0, 0).
        known: Height and width of each kind of size, pixels.
        factor: Side of a latent cell, pixels.
    """
    original, target = told(sizes, known)
    is_window = view.vertical.step == view.horizontal.step == 1
    if sizes.crop == "none" or not is_window:
        return (*original, 0, 0, *target)
    border = min(view.shape) // 8 if sizes.crop == "padded" else 0
    starts = (0 if span.is_round else max(0, span.start + border) for span in (view.vertical, view.horizontal))
    top, left = (start * factor for start in starts)
    return (*original, top, left, *target)


def _images(pipe: Any, inputs: Inputs, device: torch.device) -> list[Given]:
    """Encode pictures for IP-Adapters by the pipeline's own encoder; one tensor per adapter."""
    extras = inputs.extras
    if extras.ip_adapter_image is None and extras.ip_adapter_image_embeds is None:
        return []
    embeds = pipe.prepare_ip_adapter_image_embeds(
        extras.ip_adapter_image, extras.ip_adapter_image_embeds, device, 1, inputs.guided
    )
    found = []
    for number, pair in enumerate(embeds):
        uncond, cond = pair.chunk(2) if inputs.guided else (None, pair)
        found.append(branches_of(f"image_embeds.{number}", uncond, cond))
    return found


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
