"""Where guidance acts: a soft weight in [0, 1] for each cell of the key view."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple, share_below_half, share_below_one
from vitrail.core.method.attention_maps import AttentionRequest, Over
from vitrail.plugins.masking.heat import Normalisation, follow, warn

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

STOP_WORDS = frozenset(
    ["a", "an", "the", "of", "in", "on", "at", "under", "with", "and", "or", "to", "for", "from", "by", "its", "front"]
)
OVERS, NORMALISATIONS = ("mean", "max"), ("range", "max")


def as_words(words: str | Iterable[str]) -> tuple[str, ...]:
    """A tuple of words; a lone one is not taken apart into letters."""
    return (words,) if isinstance(words, str) else tuple(words)


@frozen
class NoMask:
    """Guidance acts everywhere."""

    needs: ClassVar[frozenset[str]] = frozenset()
    is_everywhere: ClassVar[bool] = True

    @property
    def request(self) -> None:
        """No maps."""
        return None

    def init(self) -> None:
        """No state."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: None) -> tuple[None, None]:
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
    words: tuple[str, ...] = field(default=(), converter=as_words)  # of the prompt, that alone count; () for all
    skip_stop_words: bool = True  # "a", "on" and their like are no content
    tokens: Over = field(default="mean", validator=v.in_(OVERS))  # of the content tokens; "max" is that of any
    normalise: Normalisation = field(default="range", validator=v.in_(NORMALISATIONS))  # "max" keeps the floor
    clip: float = field(default=0.02, validator=share_below_half)  # quantile cut at both ends
    ema: float = field(default=0.0, validator=share_below_one)  # weight of the steps before
    ramp_steps: int = field(default=1, validator=v.ge(1))  # steps until the mask has its full weight

    @property
    def request(self) -> AttentionRequest:
        """What the backbone is asked for."""
        skip = STOP_WORDS if self.skip_stop_words else frozenset()
        return AttentionRequest(self.layers, skip, "cross", self.words, self.tokens)

    def init(self) -> None:
        """No map yet."""

    def mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised map; everywhere, with a warning, where there is none to speak of."""
        return follow_attention(self, step, predicted, state)


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
        """What the backbone is asked for."""
        skip = STOP_WORDS if self.skip_stop_words else frozenset()
        return AttentionRequest(self.layers, skip, "joint", self.words, self.tokens, self.t5)

    def init(self) -> None:
        """No map yet."""

    def mask(
        self, step: Step, key: Prediction, predicted: ModelOutput, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised map; everywhere, with a warning, where there is none to speak of."""
        return follow_attention(self, step, predicted, state)


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
        self, step: Step, key: Prediction, predicted: ModelOutput, state: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The normalised saliency."""
        return follow(self, step, border_saliency(key.clean, self.sharpness, self.border), state)


def follow_attention(
    options: UpBlockAttention | JointAttention, step: Step, predicted: ModelOutput, state: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """A mask that follows the captured map, and the new state; see ``follow``."""
    if predicted.attention is None or not predicted.has_content:
        warn(step, "the prompt has no content word")
        return None, state
    return follow(options, step, predicted.attention.float(), state, options.normalise)


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
