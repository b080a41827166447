"""From a heat map to a mask: averaged over steps, stretched to [0, 1] between quantiles, ramped; and content words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, Protocol

from vitrail.core.config.log import logger

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.step import Step

FLAT = 1e-4  # a map whose values differ by less says nothing
Normalisation = Literal["range", "max"]
STOP_WORDS = frozenset(  # of a prompt, which are no content
    ["a", "an", "the", "of", "in", "on", "at", "under", "with", "and", "or", "to", "for", "from", "by", "its", "front"]
)
OVERS, NORMALISATIONS = ("mean", "max"), ("range", "max")


class MapOptions(Protocol):
    """Fields that every mask made from a heat map has."""

    @property
    def clip(self) -> float:
        """Quantile cut at each end of the map's values, in [0, 0.5)."""

    @property
    def ema(self) -> float:
        """Weight of the average of earlier steps' maps, in [0, 1); 0 uses this step's alone."""

    @property
    def ramp_steps(self) -> int:
        """Steps until the mask has its full weight; early maps are noise."""


def mask_from_map(
    options: MapOptions, step: Step, heat: Tensor, state: Tensor | None, kind: Normalisation = "range"
) -> tuple[Tensor | None, Tensor | None]:
    """The mask of a heat map, and the exponential average of the maps so far as the new state.

    Args:
        options: Of the mask.
        step: Its number within the stage ramps the mask's weight.
        heat: The map of this step, Float32[Tensor, "batch 1 h w"], in any unit.
        state: The average so far, of the same shape; None at the first step.
        kind: See ``normalised``.

    Returns:
        Float32[Tensor, "batch 1 h w"] in [0, 1], or None for everywhere if the map is flat; and the new state.
    """
    if state is not None and options.ema > 0:
        heat = options.ema * state + (1 - options.ema) * heat
    mask = normalised(step, heat, options.clip, kind)
    if mask is not None and options.ramp_steps > 1:
        mask = mask * min(1.0, (step.stage_step + 1) / options.ramp_steps)
    return mask, heat


def mask_from_attention(
    options: MapOptions, step: Step, predicted: ModelOutput, state: Tensor | None, kind: Normalisation
) -> tuple[Tensor | None, Tensor | None]:
    """As ``mask_from_map`` with the attention map that the backbone captured; None, with a warning, if it has none.

    Args:
        options: Of the mask.
        step: Where the run stands.
        predicted: Its ``attention`` is Float32[Tensor, "batch 1 h w"] or None.
        state: The average so far, None at the first step.
        kind: See ``normalised``.
    """
    if predicted.attention is None or not predicted.has_content:
        warn(step, "the prompt has no content word")
        return None, state
    return mask_from_map(options, step, predicted.attention.float(), state, kind)


def normalised(step: Step, heat: Tensor, clip: float, kind: Normalisation = "range") -> Tensor | None:
    """Stretch each map to [0, 1] between two quantiles; None, with a warning, if it is flat.

    Args:
        step: Named in the warning.
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
    """Whether a map's range is at most ``FLAT`` times its largest magnitude; synchronises with the device."""
    spread = (heat.amax() - heat.amin()).item()
    return not spread > FLAT * heat.abs().amax().item()


def warn(step: Step, reason: str) -> None:
    """Log ``mask.degenerate``: guidance acts on every cell at this step."""
    logger().warning("mask.degenerate", step=step.index, reason=f"{reason}; guidance acts everywhere")


def as_words(words: str | Iterable[str]) -> tuple[str, ...]:
    """An attrs converter: one text is one word, not a sequence of letters."""
    return (words,) if isinstance(words, str) else tuple(words)
