"""Where guidance acts: a soft weight in [0, 1] for each cell of the key view."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.fields import as_tuple, share_below_half, share_below_one
from vitrail.core.log import logger
from vitrail.core.protocols import AttentionRequest

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.prediction import Prediction
    from vitrail.core.protocols import Predicted
    from vitrail.core.step import Step

FLAT = 1e-4  # a map whose values differ by less says nothing
STOP_WORDS = frozenset(
    ["a", "an", "the", "of", "in", "on", "at", "under", "with", "and", "or", "to", "for", "from", "by", "its", "front"]
)


@frozen
class NoMask:
    """Guidance acts everywhere."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def request(self) -> None:
        """No maps."""
        return None

    def init(self) -> None:
        """No state."""

    def mask(self, step: Step, key: Prediction, predicted: Predicted, state: None) -> tuple[None, None]:
        """Everywhere."""
        return None, None


@frozen(kw_only=True)
class UpBlockAttention:
    """The prompt's cross-attention heat map in the up blocks, for the key view's conditional half.

    ASGDiffusion (Li et al., 2024), sec. 4.2: mean over heads, chosen layers and content tokens, enlarged to
    the view, normalised at each step and used as a soft weight. Computed beside the network's own
    attention, which stays fused. BOS, EOS, padding and stop words are no content: BOS carries most of the
    attention and is high where the object is not.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention-maps"})
    layers: tuple[int, ...] = field(default=(), converter=as_tuple)  # up blocks with cross-attention; () for all
    skip_stop_words: bool = True  # "a", "on" and their like are no content
    clip: float = field(default=0.02, validator=share_below_half)  # quantile cut at both ends
    ema: float = field(default=0.0, validator=share_below_one)  # weight of the steps before
    ramp_steps: int = field(default=1, validator=v.ge(1))  # steps until the mask has its full weight

    @property
    def request(self) -> AttentionRequest:
        """What the backbone is asked for."""
        return AttentionRequest(self.layers, STOP_WORDS if self.skip_stop_words else frozenset())

    def init(self) -> None:
        """No map yet."""

    def mask(
        self, step: Step, key: Prediction, predicted: Predicted, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised map; everywhere, with a warning, where there is none to speak of."""
        if predicted.attention is None or not predicted.has_content:
            _warn(step, "the prompt has no content word")
            return None, state
        heat = predicted.attention.float()
        if state is not None and self.ema > 0:
            heat = self.ema * state + (1 - self.ema) * heat
        return _ramped(normalised(step, heat, self.clip), step, self.ramp_steps), heat


@frozen(kw_only=True)
class ParameterFreeAttention:
    """Saliency from parameter-free self-attention of the predicted clean latents (``pfsa``).

    With the key view's clean latents as N tokens z_i of C channels, each channel standardised over the
    view, and A = softmax(s z z^T / sqrt(C)) by rows - self-attention without weights, as in AP-LDM
    (Cao et al., 2024, https://arxiv.org/abs/2410.06055), sec. 3.2 - the share of attention that token i
    pays to the border of the view is b_i = sum_{j in border} A_ij / |border|. What resembles no border is the
    object: M = 1 - (b - min b) / (max b - min b). That borders show background is the prior of Wei et al.
    (Geodesic Saliency Using Background Priors, ECCV 2012). No cross-attention is needed.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    sharpness: float = field(default=1.0, validator=v.gt(0))  # s, a factor on the logits
    border: float = field(default=0.125, validator=share_below_half)  # share of the view on each side that counts as it
    clip: float = field(default=0.02, validator=share_below_half)  # quantile cut at both ends
    ema: float = field(default=0.0, validator=share_below_one)  # weight of the steps before
    ramp_steps: int = field(default=1, validator=v.ge(1))  # steps until the mask has its full weight

    @property
    def request(self) -> None:
        """No maps."""
        return None

    def init(self) -> None:
        """No map yet."""

    def mask(
        self, step: Step, key: Prediction, predicted: Predicted, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised saliency."""
        heat = border_saliency(key.clean, self.sharpness, self.border)
        if state is not None and self.ema > 0:
            heat = self.ema * state + (1 - self.ema) * heat
        return _ramped(normalised(step, heat, self.clip), step, self.ramp_steps), heat


def border_saliency(clean: Tensor, sharpness: float, border: float) -> Tensor:
    """One minus the attention paid to the border, before normalisation.

    Args:
        clean: Float32[Tensor, "batch channels h w"].
        sharpness: Factor on the logits.
        border: Width of the border as a share of the view's shorter side; at least one cell.

    Returns:
        Float32[Tensor, "batch 1 h w"].
    """
    height, width = clean.shape[-2:]
    tokens = clean.float().flatten(2)
    tokens = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.std(-1, keepdim=True) + 1e-6)
    logits = tokens.transpose(1, 2) @ tokens * (sharpness / tokens.shape[1] ** 0.5)
    edge_width = max(1, round(border * min(height, width)))
    inside = clean.new_zeros(height, width, dtype=tokens.dtype)
    inside[edge_width : height - edge_width, edge_width : width - edge_width] = 1
    edge = 1 - inside.flatten()
    paid: Tensor = (logits.softmax(-1) * edge).sum(-1) / edge.sum()
    return -paid.view(-1, 1, height, width)


def normalised(step: Step, heat: Tensor, clip: float) -> Tensor | None:
    """Stretch each map to [0, 1] between two quantiles; None, with a warning, if it is flat.

    Args:
        step: For the warning.
        heat: Float32[Tensor, "batch 1 h w"].
        clip: Share of cells cut at each end.
    """
    flat = heat.flatten(1)
    low = flat.quantile(clip, dim=1).view(-1, 1, 1, 1)
    high = flat.quantile(1 - clip, dim=1).view(-1, 1, 1, 1)
    if is_flat_sync(heat):
        _warn(step, "the map is flat")
        return None
    return ((heat - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def is_flat_sync(heat: Tensor) -> bool:
    """Whether a map varies by less than ``FLAT`` of its size; waits for the device."""
    spread = (heat.amax() - heat.amin()).item()
    return not spread > FLAT * heat.abs().amax().item()


def _ramped(mask: Tensor | None, step: Step, ramp_steps: int) -> Tensor | None:
    """Let the first steps count less; early maps are noise."""
    return mask if mask is None or ramp_steps == 1 else mask * min(1.0, (step.stage_step + 1) / ramp_steps)


def _warn(step: Step, reason: str) -> None:
    logger().warning("mask.degenerate", step=step.index, reason=f"{reason}; guidance acts everywhere")
