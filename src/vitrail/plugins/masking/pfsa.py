"""``pfsa``: saliency from parameter-free self-attention of the predicted latents, which needs no attention maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import share_below_half, share_below_one
from vitrail.plugins.masking.heat_maps import mask_from_map

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


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
        """None: no attention maps are captured."""
        return None

    def init(self) -> None:
        """None: no map has been averaged."""

    def mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised saliency, Float32[Tensor, "batch 1 h w"] in [0, 1], and the average of maps as state."""
        return mask_from_map(self, step, border_saliency(key.clean, self.sharpness, self.border), state)


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
