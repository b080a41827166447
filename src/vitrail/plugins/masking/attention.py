"""``attention``: a mask from the network's attention to the words of the prompt, whatever kind of attention it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import evolve, field, frozen
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
class AttentionMask:
    """What all masks from the attention to the prompt have in common: the heat map's options, and the mask.

    ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), sec. 4.2: mean over heads, chosen layers and
    content tokens, enlarged to the view, normalised at each step and used as a soft weight. Computed beside the
    network's own attention, which stays fused. BOS, EOS, padding and stop words are no content: BOS carries most of
    the attention and is high where the object is not.
    """

    words: tuple[str, ...] = field(default=(), converter=as_words)  # of the prompt, that alone count; () for all
    skip_stop_words: bool = True  # "a", "on" and their like are no content
    tokens: Over = field(default="mean", validator=v.in_(OVERS))  # of the content tokens; "max" is that of any
    normalise: Normalisation = field(default="range", validator=v.in_(NORMALISATIONS))  # "max" keeps the floor
    clip: float = field(default=0.02, validator=share_below_half)  # quantile cut at both ends
    ema: float = field(default=0.0, validator=share_below_one)  # weight of the steps before
    ramp_steps: int = field(default=1, validator=v.ge(1))  # steps until the mask has its full weight

    def init(self) -> None:
        """None: no map has been averaged."""

    def mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised map, Float32[Tensor, "batch 1 h w"] in [0, 1], and the average of maps as state.

        None, which is everywhere, with a warning, where the prompt has no content word or the map is flat.
        """
        return mask_from_attention(self, step, predicted, state, self.normalise)

    def _content(self, asked: AttentionRequest) -> AttentionRequest:
        """Return a request with the words that count, and whether their mean or maximum does."""
        skip = STOP_WORDS if self.skip_stop_words else frozenset()
        return evolve(asked, skip_words=skip, words=self.words, over=self.tokens)


@frozen(kw_only=True)
class PromptAttention(AttentionMask):
    """The prompt's heat map, for the key view's conditional half, in the attention that the network has.

    The cross-attention of a U-Net's up blocks, as ``up-block-attention`` reads it, or the joint attention of a
    transformer's late blocks, as ``joint-attention`` does. The plan of a run says which.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention-maps"})
    layers: tuple[int, ...] = field(default=(), converter=as_tuple)  # of a U-Net: its up blocks; () for all
    blocks: tuple[int, ...] = field(default=(), converter=as_tuple)  # of a transformer; () for the late half

    @property
    def request(self) -> AttentionRequest:
        """One map of the key view: the share of attention of the content tokens, mean or maximum of them."""
        return self._content(AttentionRequest(layers=self.layers, blocks=self.blocks))
