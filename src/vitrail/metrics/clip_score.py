"""CLIP score (Hessel et al., 2021, https://arxiv.org/abs/2104.08718, eq. 1, with the weight 100)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.metric import Column, FeatureExtractor, Shown
from vitrail.metrics.clip import digest_of_clip, load_clip, similarity

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class ClipScore:
    """How well pictures fit their prompts: 100 times the cosine of CLIP's embeddings, at least 0; mean.

    Around 20 to 35 with the published models; a picture's middle square is seen, and a long prompt's beginning.
    """

    needs_reference: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (Column(name="CLIP", better="up", lowest=0.0, highest=100.0),)
    folder: str = field(validator=v.min_len(1))  # of a CLIPModel in transformers' format, with its tokenizer

    @property
    def extractor(self) -> FeatureExtractor:
        """Itself."""
        return self

    @property
    def digest(self) -> str:
        """Of the folder's files."""
        return digest_of_clip(self.folder)

    def look(self, shown: Shown) -> Tensor:
        """The score of one picture, Float32[Tensor, "1"]; nan without a prompt.

        Raises:
            ModelError: If the folder holds no such model.
        """
        import torch

        if not shown.prompt.strip():
            return torch.tensor([math.nan], dtype=torch.float32, device="cpu")
        network = load_clip(self.folder, str(shown.picture.device), self.digest)
        found = similarity(network.of_pictures(shown.picture[None])[0], network.of_text(shown.prompt))
        return torch.tensor([100 * max(0.0, found)], dtype=torch.float32, device="cpu")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The mean over the pictures that have a prompt."""
        return (features.nanmean().item(),)
