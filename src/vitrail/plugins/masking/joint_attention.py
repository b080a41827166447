"""``joint-attention``: a mask from a transformer's joint attention to the words of the prompt."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.plugins.masking.attention import AttentionMask


@frozen(kw_only=True)
class JointAttention(AttentionMask):
    """The prompt's heat map in a transformer's joint attention, for the key view's conditional half.

    For networks such as Stable Diffusion 3 (Esser et al., 2024, https://arxiv.org/abs/2403.03206): the share of its
    attention that each cell of the picture pays to the content tokens, among all cells and all tokens.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"joint-attention-maps"})
    layers: tuple[int, ...] = field(default=(), converter=as_tuple)  # blocks, -1 is the last; () for the late half
    t5: bool = False  # the tokens of the T5 encoder count, too

    @property
    def request(self) -> AttentionRequest:
        """One map of the key view: the share of attention of the content tokens, mean or maximum of them."""
        return self._content(AttentionRequest(kind="joint", blocks=self.layers, t5=self.t5))
