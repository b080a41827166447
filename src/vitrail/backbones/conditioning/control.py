"""ControlNet: a hint of the picture's size, cropped for every view."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from vitrail.backbones.conditioning.encoded import Given
from vitrail.backbones.conditioning.input_checks import by_network, nets_of
from vitrail.backbones.pipeline_backbone import read_picture
from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.core.method.inputs import Inputs
    from vitrail.core.schedule.step import Step

HINT = "control_image"


@frozen(kw_only=True)
class Control:
    """Weights of the hints and the steps at which they act; one entry per control network.

    Attributes:
        scales: Weights of the hints.
        starts: Share of the steps before a hint takes effect.
        ends: Share of the steps after which it has no effect.
        first: First step that is done, from which shares are counted.
    """

    scales: tuple[float, ...] = field(converter=as_tuple)
    starts: tuple[float, ...] = field(converter=as_tuple)
    ends: tuple[float, ...] = field(converter=as_tuple)
    first: int = 0

    def weights(self, step: Step) -> list[float]:
        """Return the weights of the hints at a step, by the rule of diffusers' pipelines."""
        done, steps = step.phase_step - self.first, step.phase_num_steps - self.first
        shares = zip(self.scales, self.starts, self.ends, strict=True)
        return [scale * float(done / steps >= start and (done + 1) / steps <= end) for scale, start, end in shares]

    def acts(self, step: Step) -> bool:
        """Whether any hint has a weight at a step."""
        return any(self.weights(step))

    def residuals(
        self,
        controlnet: Any,
        latents: Tensor,
        step: Step,
        timestep: Tensor,
        rows: Mapping[str, Tensor],
        **arguments: Any,
    ) -> dict[str, Any]:
        """Run the control networks; return the U-Net's residuals for its skips and its middle block.

        Args:
            controlnet: The pipeline's control network or networks.
            latents: Float32[Tensor, "rows channels h w"].
            step: Position of the run.
            timestep: Timestep of the step.
            rows: Conditioning of the micro-batch, with the hints.
            arguments: The U-Net's own conditioning.
        """
        hints, weights = [rows[name] for name in hint_names(len(self.scales))], self.weights(step)
        many = hasattr(controlnet, "nets")
        down, middle = controlnet(
            latents,
            timestep,
            controlnet_cond=hints if many else hints[0],
            conditioning_scale=weights if many else weights[0],
            guess_mode=False,
            return_dict=False,
            **arguments,
        )
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def hint_names(count: int) -> list[str]:
    """Return the names of the hints of ``count`` control networks."""
    return [f"{HINT}.{number}" for number in range(count)]


def control_of(pipe: Any, inputs: Inputs, device: torch.device) -> tuple[Control | None, tuple[Given, ...]]:
    """Return the control of a run and its hints, which are cropped to the views later.

    Args:
        pipe: The pipeline, with or without a ControlNet.
        inputs: Give the hints, weights and shares.
        device: Device of the hints.
    """
    controlnet, extras = getattr(pipe, "controlnet", None), inputs.extras
    if controlnet is None:
        return None, ()
    nets = nets_of(controlnet)
    hints = extras.control_image if isinstance(extras.control_image, list) else [extras.control_image]
    given = tuple(
        _hint(pipe, name, picture, net, inputs, device)
        for name, picture, net in zip(hint_names(len(nets)), hints, nets, strict=True)
    )
    scale: Any = extras.controlnet_conditioning_scale
    if scale is None:  # diffusers' default: 1, or 0.8 for a run from a picture
        scale = inspect.signature(type(pipe).__call__).parameters["controlnet_conditioning_scale"].default
    control = Control(
        scales=by_network(scale, len(nets)),
        starts=by_network(extras.control_guidance_start, len(nets)),
        ends=by_network(extras.control_guidance_end, len(nets)),
        first=inputs.first,
    )
    return control, given


def _hint(pipe: Any, name: str, picture: object, net: Any, inputs: Inputs, device: torch.device) -> Given:
    """Return a hint at the size of the picture, by the pipeline's own processor; equal in both branches."""
    hint = read_picture(pipe.control_image_processor, picture, inputs.height, inputs.width)
    hint = hint.to(device=device, dtype=net.dtype)
    return Given(name=name, layout="spatial", values={"cond": hint, "uncond": hint}, scale=pipe.vae_scale_factor)
