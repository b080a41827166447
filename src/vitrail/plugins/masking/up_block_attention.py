"""``up-block-attention``: a mask from a U-Net's cross-attention to the words of the prompt."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.attention_maps import AttentionRequest
from vitrail.plugins.masking.attention import AttentionMask


@frozen(kw_only=True)
class UpBlockAttention(AttentionMask):
    """The prompt's cross-attention heat map in the up blocks, for the key view's conditional half.

    ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), sec. 4.2. For networks with cross-attention only;
    ``attention`` serves the others, too.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cross-attention-maps"})
    layers: tuple[int, ...] = field(default=(), converter=as_tuple)  # up blocks with cross-attention; () for all

    @property
    def request(self) -> AttentionRequest:
        """One map of the key view: the share of attention of the content tokens, mean or maximum of them."""
        return self._content(AttentionRequest(kind="cross", layers=self.layers))
