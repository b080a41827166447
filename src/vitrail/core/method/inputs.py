"""What a picture is conditioned on, besides numbers: words, embeddings, pictures."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.errors import ConfigError, nearest


@frozen(kw_only=True, eq=False)
class Extras:
    """What a caller brings that is no plain data, so a recipe cannot carry it. diffusers' call names.

    Attributes:
        latents: Standard normal noise to start from instead of the seed's,
            Float32[Tensor, "1 channels height width"].
        image: A picture to start from, as Pillow has it or in [0, 1], Float32[Tensor, "3|1 ... Height Width"];
            or its latents, of the canvas's size.
        prompt_embeds: Instead of the prompt's, Float32[Tensor, "1 tokens width"]; the words of the prompt are
            then only looked at for attention maps.
        negative_prompt_embeds: As above; needed with them if guidance is on.
        pooled_prompt_embeds: Float32[Tensor, "1 width"], where the pipeline has them.
        negative_pooled_prompt_embeds: As above.
        ip_adapter_image: A picture, or a list of them, one an adapter.
        ip_adapter_image_embeds: Instead of pictures, as the pipeline's ``prepare_ip_adapter_image_embeds`` gives them.
        control_image: The hint of the pipeline's ControlNet, as large as the picture or brought to its size; a list
            of them if there are several networks.
        controlnet_conditioning_scale: Weight of the hint, or a list with one a network; what the pipeline's own
            call has for it if not given.
        control_guidance_start: Share of the steps that are done before the hint counts, or a list as above.
        control_guidance_end: Share of the steps after which it no longer does, or a list as above.
        cross_attention_kwargs: For the attention processors of a U-Net, e.g. ``{"scale": 0.7}`` of a LoRA; numbers
            only, since what lies on the picture would have to be cut with every view.
        joint_attention_kwargs: The same for a transformer.
        clip_skip: Text layers left out at the end.
    """

    latents: Any = None
    image: Any = None
    prompt_embeds: Any = None
    negative_prompt_embeds: Any = None
    pooled_prompt_embeds: Any = None
    negative_pooled_prompt_embeds: Any = None
    ip_adapter_image: Any = None
    ip_adapter_image_embeds: Any = None
    control_image: Any = None
    controlnet_conditioning_scale: float | list[float] | None = None
    control_guidance_start: float | list[float] = 0.0
    control_guidance_end: float | list[float] = 1.0
    cross_attention_kwargs: dict[str, Any] | None = None
    joint_attention_kwargs: dict[str, Any] | None = None
    clip_skip: int | None = None

    @classmethod
    def take(cls, options: dict[str, Any]) -> Extras:
        """The extras among the keywords of a call, which are taken out of ``options``."""
        return cls(**{name: options.pop(name) for name in attrs.fields_dict(cls) if name in options})

    def given(self) -> tuple[str, ...]:
        """The names of those that differ from their defaults."""
        given = ((f, getattr(self, f.name)) for f in attrs.fields(Extras))
        return tuple(f.name for f, value in given if value is not f.default and not _same_number(value, f.default))

    @property
    def lora_scale(self) -> float | None:
        """What all LoRAs are weighted with besides, None if it is left to them."""
        scale: float | None = (self.cross_attention_kwargs or self.joint_attention_kwargs or {}).get("scale")
        return scale

    def refuse(self, served: frozenset[str], backbone: str) -> None:
        """Refuse what a backbone cannot use.

        Raises:
            ConfigError: Naming each, and what would be used.
        """
        wrong = [name for name in self.given() if name not in served | {"latents", "image"}]
        if wrong:
            listed = "; ".join(f"{name!r}{nearest(name, served)}" for name in wrong)
            raise ConfigError(f"{backbone} has no use for {listed}")


@frozen(kw_only=True, eq=False)
class Inputs:
    """Everything that conditions one picture.

    Attributes:
        prompt: One sentence.
        negative_prompt: None for what the model guides away from by itself; "" is a text, the empty one.
        guided: Whether classifier-free guidance is on, so that both branches are needed.
        height: Of the picture at this size of the run, pixels.
        width: Of the picture at this size of the run, pixels.
        num_steps: Scheduler calls of the schedule at this size.
        first: The step to begin at; more than 0 if the run starts from a picture.
        sizes: What the network is told about sizes, by stage.
        extras: Conditioning that is no plain data.
        pictures: Height and width at every size of the run, the wanted one last; () if this is the only one.
    """

    prompt: str
    negative_prompt: str | None
    guided: bool
    height: int
    width: int
    num_steps: int
    sizes: tuple[SizeConditioning, ...] = field(converter=as_tuple)
    extras: Extras = Extras()
    first: int = 0
    pictures: tuple[tuple[int, int], ...] = field(converter=as_tuple, default=())

    def picture(self, phase: int) -> tuple[int, int]:
        """Height and width in pixels at a size of the run, -1 for the wanted one."""
        return self.pictures[phase] if self.pictures else (self.height, self.width)


def _same_number(value: Any, default: Any) -> bool:
    return isinstance(value, (int, float)) and isinstance(default, float) and value == default
