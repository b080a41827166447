"""Validation of caller-supplied inputs against the pipeline, before anything is computed; all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from vitrail.errors import ConfigError, Problems

if TYPE_CHECKING:
    from vitrail.core.method.inputs import Extras, Inputs

GUIDANCE = ("control_guidance_start", "control_guidance_end")
TENSORS = (
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
ARGUMENTS = ("cross_attention_kwargs", "joint_attention_kwargs")
BY_NETWORK = ("controlnet_conditioning_scale", *GUIDANCE)


def check_caller_inputs(pipe: Any, inputs: Inputs, served: frozenset[str], lacking: Sequence[str] = ()) -> None:
    """Refuse inputs that a pipeline cannot use.

    Args:
        pipe: A diffusers pipeline.
        inputs: Inputs of the run.
        served: Names of the ``Extras`` that the pipeline can use.
        lacking: Names of missing parts that are needed to encode a text.

    Raises:
        ConfigError: Listing every problem.
    """
    problems, extras, name = Problems(), inputs.extras, type(pipe).__name__
    with problems.collect():
        extras.refuse(served, name)
    odd = list(_types(extras))
    found = odd or [*_embeddings(extras, inputs, served), *_texts(pipe, inputs, lacking), *_numbers(extras)]
    found = found or list(_skipped_layers(pipe, extras, served))
    if "ip_adapter_image" in served:
        found += _pictures(pipe, extras, inputs.guided, name)
    if "control_image" in served:
        found += _hints(pipe, extras, name)
    for problem in found:
        with problems.collect():
            raise ConfigError(problem)
    problems.tell()


def nets_of(controlnet: Any) -> Sequence[Any]:
    """Return the control networks of a pipeline, one or several."""
    return list(getattr(controlnet, "nets", [controlnet]))


def adapters_of(unet: Any) -> Sequence[Any]:
    """Return a U-Net's IP-Adapter projections, one per adapter; empty without IP-Adapter."""
    return list(getattr(getattr(unet, "encoder_hid_proj", None), "image_projection_layers", ()))


def _types(extras: Extras) -> Iterator[str]:
    """Yield inputs of other types than the checks of their values read."""
    import torch

    for name in TENSORS:
        value = getattr(extras, name)
        if value is not None and not isinstance(value, torch.Tensor):
            hint = "; torch.from_numpy makes one" if type(value).__module__ == "numpy" else ""
            yield f"{name} must be a tensor, got {type(value).__name__}{hint}"
    for name in ARGUMENTS:
        value = getattr(extras, name)
        if value is not None and not isinstance(value, Mapping):
            yield f"{name} must be a table of numbers, such as {{'scale': 0.7}}, got {type(value).__name__}"


def _embeddings(extras: Extras, inputs: Inputs, served: frozenset[str]) -> Iterator[str]:
    """Yield embeddings that lack others, or do not fit them."""
    pooled = "pooled_prompt_embeds" in served
    for side in ("", "negative_"):
        name, beside = f"{side}prompt_embeds", f"{side}pooled_prompt_embeds"
        value, more = getattr(extras, name), getattr(extras, beside)
        if value is not None and (len(value) != 1 or value.numel() == 0):
            yield f"{name} must be of one prompt, (1, tokens, width), got {tuple(value.shape)}"
        if pooled and (value is None) != (more is None):
            missing, there = (name, beside) if value is None else (beside, name)
            yield f"{there} need {missing} beside them; encode_prompt of the pipeline gives both"
    cond, uncond = extras.prompt_embeds, extras.negative_prompt_embeds
    if uncond is not None and inputs.negative_prompt is not None:
        yield "negative_prompt and negative_prompt_embeds say the same thing; give one of them"
    if not inputs.guided or cond is None or uncond is None:
        return
    if cond.shape != uncond.shape:
        yield (
            f"prompt_embeds are {tuple(cond.shape)} and negative_prompt_embeds {tuple(uncond.shape)}; "
            "they must be of one shape, so pad the shorter prompt"
        )


def _texts(pipe: Any, inputs: Inputs, lacking: Sequence[str]) -> Iterator[str]:
    """Yield texts that cannot be encoded since parts are missing."""
    extras, zeros = inputs.extras, pipe.config.get("force_zeros_for_empty_prompt", False)
    needs = ["prompt_embeds"] if extras.prompt_embeds is None else []
    given = extras.negative_prompt_embeds is not None or (zeros and inputs.negative_prompt is None)
    needs += [] if given or not inputs.guided else ["negative_prompt_embeds"]
    if lacking and needs:
        yield (
            f"{type(pipe).__name__} has no {', '.join(lacking)} to encode a text with; load {_them(lacking)}, or give "
            f"{' and '.join(needs)}"
        )


def _them(parts: Sequence[str]) -> str:
    return "them" if len(parts) > 1 else "it"


def _numbers(extras: Extras) -> Iterator[str]:
    """Yield invalid ``clip_skip`` values, and arguments of attention processors that are not numbers."""
    skip: Any = extras.clip_skip
    if skip is not None and (isinstance(skip, bool) or not isinstance(skip, Integral) or skip < 0):
        yield f"clip_skip must be a whole number, 0 or more, or left out; got {skip!r}"
    for name in ARGUMENTS:
        for key, value in (getattr(extras, name) or {}).items():
            if value is not None and not isinstance(value, Real):
                yield (
                    f"{name}[{key!r}] may lie on the picture, and would have to be cut with every view, which is not "
                    "done; only numbers are served"
                )


def _skipped_layers(pipe: Any, extras: Extras, served: frozenset[str]) -> Iterator[str]:
    """Yield a ``clip_skip`` that leaves no layer, or that the pipeline cannot follow with this transformers."""
    encoder = getattr(pipe, "text_encoder", None)
    if extras.clip_skip is None or extras.prompt_embeds is not None or encoder is None:
        return
    pooled = "pooled_prompt_embeds" in served  # these read the layer before the last if nothing is skipped
    most: int = encoder.config.num_hidden_layers - pooled
    if extras.clip_skip > most:
        yield f"clip_skip={extras.clip_skip}: the text encoder has {most} to skip"
    if not pooled and not hasattr(encoder, "text_model"):
        yield (
            "clip_skip: diffusers' pipelines of Stable Diffusion 1 and 2 look for the text encoder's last "
            "normalisation where transformers from 5 on does not have it; leave it out, give prompt_embeds instead, or "
            "install transformers below 5"
        )


def _pictures(pipe: Any, extras: Extras, guided: bool, name: str) -> Iterator[str]:
    """Yield pictures that are missing, too many, or not encoded as guidance needs."""
    count, picture, embeds = len(adapters_of(pipe.unet)), extras.ip_adapter_image, extras.ip_adapter_image_embeds
    if picture is None and embeds is None:
        yield f"{name} has an IP-Adapter, so it needs ip_adapter_image or ip_adapter_image_embeds"
    if picture is not None and embeds is not None:
        yield "ip_adapter_image and ip_adapter_image_embeds say the same thing; give one of them"
    if picture is not None and getattr(pipe, "image_encoder", None) is None:
        yield f"{name} has no image encoder, so give ip_adapter_image_embeds instead of ip_adapter_image"
    if picture is not None and getattr(pipe, "feature_extractor", None) is None:
        yield f"{name} has no feature_extractor, so give ip_adapter_image_embeds instead of ip_adapter_image"
    import torch

    given = picture if isinstance(picture, list) else [picture]
    for shape in (tuple(each.shape) for each in given if isinstance(each, torch.Tensor)):
        side = getattr(getattr(pipe.image_encoder, "config", None), "image_size", None)
        if side is not None and shape != (1, 3, side, side):
            yield (
                f"ip_adapter_image as floats is what the feature_extractor gives, {(1, 3, side, side)}, got {shape}; "
                "give the picture itself, as a Pillow image or uint8"
            )
    if picture is not None and len(given) != count:
        yield f"{name} has {count} IP-Adapters; give ip_adapter_image as a list of as many, got {len(given)}"
    if embeds is None:
        return
    if not isinstance(embeds, list) or len(embeds) != count:
        yield f"{name} has {count} IP-Adapters; give ip_adapter_image_embeds as a list of as many tensors"
    elif any(len(one) != 1 + guided for one in embeds):
        both = "no picture and the picture, in this order" if guided else "the picture alone, without guidance"
        yield (
            f"ip_adapter_image_embeds must be of {both}: {1 + guided} along the first axis, got "
            f"{[len(one) for one in embeds]}; prepare_ip_adapter_image_embeds of the pipeline gives them"
        )


def _hints(pipe: Any, extras: Extras, name: str) -> Iterator[str]:
    """Yield hints that are missing or of a wrong number, and weights and shares that do not fit them."""
    nets = nets_of(pipe.controlnet)
    hint, count = extras.control_image, len(nets)
    for dtype in sorted({str(net.dtype).removeprefix("torch.") for net in nets if net.dtype != pipe.unet.dtype}):
        own = str(pipe.unet.dtype).removeprefix("torch.")
        yield f"a control network of {name} is in {dtype}, its U-Net in {own}; load both with one torch_dtype"
    if hint is None:
        yield f"{name} has a ControlNet, so it needs control_image, the hint for it"
    elif (isinstance(hint, list) or count > 1) and (not isinstance(hint, list) or len(hint) != count):
        yield f"{name} has {count} control networks; give control_image as a list of as many hints"
    for option in BY_NETWORK:
        value = getattr(extras, option)
        if isinstance(value, list) and len(value) != count:
            yield f"{option} must be one number, or a list of {count}, one a control network; got {value}"
            return
    starts, ends = (by_network(getattr(extras, option), count) for option in GUIDANCE)
    for start, end in zip(starts, ends, strict=True):
        if not 0 <= start < end <= 1:
            yield f"control_guidance_start {start:g} and control_guidance_end {end:g} must be 0 <= start < end <= 1"


def by_network(value: float | Sequence[float], count: int) -> tuple[float, ...]:
    """Return one number per control network."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * count
