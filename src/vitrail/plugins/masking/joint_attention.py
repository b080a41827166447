"""``joint-attention``: a mask from a transformer's joint attention to the words of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple, share_below_half, share_below_one
from vitrail.core.method.attention_maps import AttentionRequest, Over
from vitrail.plugins.masking.heat_maps import (
    NORMALISATIONS,
    OVERS,
    STOP_WORDS,
    Normalisation,
    as_words,
    mask_from_attention,
)

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class JointAttention:
    """The prompt's heat map in a transformer's joint attention, for the key view's conditional half.

    As ``up-block-attention``, for networks without cross-attention such as Stable Diffusion 3 (Esser et al.,
    2024, https://arxiv.org/abs/2403.03206): the share of its attention that each cell of the picture pays to
    the content tokens, among all cells and all tokens, in the late blocks.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"joint-attention-maps"})
    layers: tuple[int, ...] = field(default=(), converter=as_tuple)  # blocks, -1 is the last; () for the late half
    words: tuple[str, ...] = field(default=(), converter=as_words)  # of the prompt, that alone count; () for all
    t5: bool = False  # the tokens of the T5 encoder count, too
    skip_stop_words: bool = True  # "a", "on" and their like are no content
    tokens: Over = field(default="mean", validator=v.in_(OVERS))  # of the content tokens; "max" is that of any
    normalise: Normalisation = field(default="range", validator=v.in_(NORMALISATIONS))  # "max" keeps the floor
    clip: float = field(default=0.02, validator=share_below_half)  # quantile cut at both ends
    ema: float = field(default=0.0, validator=share_below_one)  # weight of the steps before
    ramp_steps: int = field(default=1, validator=v.ge(1))  # steps until the mask has its full weight

    @property
    def request(self) -> AttentionRequest:
        """One map of the key view: the share of attention of the content tokens, mean or maximum of them."""
        skip = STOP_WORDS if self.skip_stop_words else frozenset()
        return AttentionRequest(self.layers, skip, "joint", self.words, self.tokens, self.t5)

    def init(self) -> None:
        """None: no map has been averaged."""

    def mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised map, Float32[Tensor, "batch 1 h w"] in [0, 1], and the average of maps as state.

        None, which is everywhere, with a warning, where the prompt has no content word or the map is flat.
        """
        return mask_from_attention(self, step, predicted, state, self.normalise)
