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
    """Mean fit of pictures to their prompts: 100 times the cosine of CLIP's embeddings, clipped at 0.

    Around 20 to 35 with the published models. Only a picture's centre square and the beginning of a long prompt count.
    """

    needs_reference: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (Column(name="CLIP", better="up", lowest=0.0, highest=100.0),)
    path_options: ClassVar[tuple[str, ...]] = ("folder",)
    folder: str = field(validator=v.min_len(1))  # of a CLIPModel in transformers' format, with its tokenizer

    @property
    def extractor(self) -> FeatureExtractor:
        """The metric is its own feature extractor."""
        return self

    @property
    def digest(self) -> str:
        """SHA-256 digest of CLIP's files, in hexadecimal."""
        return digest_of_clip(self.folder)

    def look(self, shown: Shown) -> Tensor:
        """Return the score of one picture, Float32[Tensor, "1"]; nan if its prompt is empty.

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
        """Return the mean over the pictures with a prompt; nan if there are none."""
        return (features.nanmean().item(),)
