"""Conditioning of a picture: prompts, embeddings, pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True, eq=False)
class Extras:
    """Caller-supplied inputs that are not plain data, so that a recipe cannot store them; named as in diffusers' calls.

    Attributes:
        latents: Standard normal noise to start from, instead of noise drawn from the seed,
            Float32[Tensor, "1 channels height width"].
        image: A picture to start from, as Pillow has it or in [0, 1], Float32[Tensor, "3|1 ... Height Width"];
            or its latents, of the canvas's size.
        prompt_embeds: Replace the prompt's embeddings, Float32[Tensor, "1 tokens width"]; the words of the prompt
            are then used for attention maps only.
        negative_prompt_embeds: As above; required with ``prompt_embeds`` if guidance is on.
        pooled_prompt_embeds: Float32[Tensor, "1 width"], where the pipeline has them.
        negative_pooled_prompt_embeds: As above.
        ip_adapter_image: A picture, or a list with one per adapter.
        ip_adapter_image_embeds: Embeddings instead of pictures, as ``prepare_ip_adapter_image_embeds`` returns them.
        control_image: The hint of the pipeline's ControlNet, resized to the picture if needed; a list if there are
            several networks.
        controlnet_conditioning_scale: Weight of the hint, or a list with one per network; by default that of the
            pipeline's own call.
        control_guidance_start: Share of the steps before the hint takes effect, or a list as above.
        control_guidance_end: Share of the steps after which it has no effect, or a list as above.
        cross_attention_kwargs: For the attention processors of a U-Net, e.g. ``{"scale": 0.7}`` of a LoRA; numbers
            only, since spatial values would have to be cropped to every view.
        joint_attention_kwargs: The same for a transformer.
        clip_skip: Number of text encoder layers skipped at the end.
    """

    latents: Tensor | None = None
    image: object = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    ip_adapter_image: object = None
    ip_adapter_image_embeds: list[Tensor] | None = None
    control_image: object = None
    controlnet_conditioning_scale: float | list[float] | None = None
    control_guidance_start: float | list[float] = 0.0
    control_guidance_end: float | list[float] = 1.0
    cross_attention_kwargs: dict[str, float | None] | None = None
    joint_attention_kwargs: dict[str, float | None] | None = None
    clip_skip: int | None = None

    @classmethod
    def take(cls, options: dict[str, object]) -> Extras:
        """Remove the extras from the keywords of a call and return them."""
        make: Callable[..., Extras] = cls  # of what types they are, a backbone's ``check_inputs`` finds out
        return make(**{name: options.pop(name) for name in attrs.fields_dict(cls) if name in options})

    def given(self) -> tuple[str, ...]:
        """Return the names of the fields that differ from their defaults."""
        given = ((f, getattr(self, f.name)) for f in attrs.fields(Extras))
        return tuple(f.name for f, value in given if value is not f.default and not _same_number(value, f.default))

    @property
    def lora_scale(self) -> float | None:
        """Common weight of all LoRAs; None if not given."""
        return (self.cross_attention_kwargs or self.joint_attention_kwargs or {}).get("scale")

    def refuse(self, served: frozenset[str], backbone: str) -> None:
        """Refuse inputs that a backbone cannot use.

        Args:
            served: Names of the inputs that it uses, besides ``latents`` and ``image``.
            backbone: Name of the backbone in the message.

        Raises:
            ConfigError: Naming each such input and the nearest one that is used.
        """
        wrong = [name for name in self.given() if name not in served | {"latents", "image"}]
        if wrong:
            listed = "; ".join(f"{name!r}{nearest(name, served)}" for name in wrong)
            raise ConfigError(f"{backbone} has no use for {listed}")


@frozen(kw_only=True, eq=False)
class Inputs:
    """Everything that conditions one picture.

    Attributes:
        prompt: Text of the picture.
        negative_prompt: None for the model's own unconditional embedding; "" is the empty text.
        guided: Whether classifier-free guidance is on, so that both branches are needed.
        height: Height of the picture at this phase of the run, pixels.
        width: Width of the picture at this phase of the run, pixels.
        num_steps: Scheduler calls of the schedule of this phase.
        first: First step that is done; more than 0 if the run starts from a picture.
        sizes: Size conditioning of each stage.
        extras: Inputs that are not plain data.
        pictures: Height and width of every phase of the run, the wanted size last; () if there is one phase.
        compiled: Whether the network is to run as compiled code; given only to a backbone that offers "compile".
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
    compiled: bool = False

    def picture(self, phase: int) -> tuple[int, int]:
        """Return height and width in pixels at a phase of the run, -1 for the last."""
        return self.pictures[phase] if self.pictures else (self.height, self.width)


def _same_number(value: object, default: object) -> bool:
    return isinstance(value, (int, float)) and isinstance(default, float) and value == default
