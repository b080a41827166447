"""From a map to a mask: averaged over steps, stretched to [0, 1], ramped. What every mask source shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from vitrail.core.config.log import logger

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.schedule.step import Step

FLAT = 1e-4  # a map whose values differ by less says nothing
Normalisation = Literal["range", "max"]


class MapOptions(Protocol):
    """What every mask that follows a map can be told."""

    @property
    def clip(self) -> float:
        """Share of cells cut at each end."""

    @property
    def ema(self) -> float:
        """Weight of the maps of the steps before."""

    @property
    def ramp_steps(self) -> int:
        """Steps until the mask has its full weight; early maps are noise."""


def follow(
    options: MapOptions, step: Step, heat: Tensor, state: Tensor | None, kind: Normalisation = "range"
) -> tuple[Tensor | None, Tensor | None]:
    """A mask that follows a map, and the new state: the map as averaged so far.

    Args:
        options: Of the mask.
        step: Where the run stands.
        heat: The map of this step, Float32[Tensor, "batch 1 h w"].
        state: The map so far, None at the first step.
        kind: See ``normalised``.
    """
    if state is not None and options.ema > 0:
        heat = options.ema * state + (1 - options.ema) * heat
    mask = normalised(step, heat, options.clip, kind)
    if mask is not None and options.ramp_steps > 1:
        mask = mask * min(1.0, (step.stage_step + 1) / options.ramp_steps)
    return mask, heat


def normalised(step: Step, heat: Tensor, clip: float, kind: Normalisation = "range") -> Tensor | None:
    """Stretch each map to [0, 1] between two quantiles; None, with a warning, if it is flat.

    Args:
        step: For the warning.
        heat: Float32[Tensor, "batch 1 h w"].
        clip: Share of cells cut at each end.
        kind: ``range`` takes the lower quantile to 0; ``max`` leaves 0 where it is and only scales the upper
            quantile to 1, for maps that are not negative.
    """
    import torch

    flat = heat.flatten(1)
    low = flat.quantile(clip, dim=1).view(-1, 1, 1, 1)
    high = flat.quantile(1 - clip, dim=1).view(-1, 1, 1, 1)
    if is_flat_sync(heat):
        warn(step, "the map is flat")
        return None
    low = low if kind == "range" else torch.zeros_like(low)
    return ((heat - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def is_flat_sync(heat: Tensor) -> bool:
    """Whether a map varies by less than ``FLAT`` of its size; waits for the device."""
    spread = (heat.amax() - heat.amin()).item()
    return not spread > FLAT * heat.abs().amax().item()


def warn(step: Step, reason: str) -> None:
    """Say that a mask means everywhere at a step."""
    logger().warning("mask.degenerate", step=step.index, reason=f"{reason}; guidance acts everywhere")
