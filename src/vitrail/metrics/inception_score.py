"""Inception score (Salimans et al., 2016, https://arxiv.org/abs/1606.03498, sec. 4), through torchmetrics.

    IS = exp(mean over pictures of KL(p(class | picture) || mean p))

in one split, so that a small set is not cut into smaller ones; published scores often are means of ten splits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, FeatureExtractor
from vitrail.metrics.crops import OfSets
from vitrail.metrics.reference_sets import passing, torchmetrics, undisturbed

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-30  # a probability's least value, so that its logarithm is finite


@frozen(kw_only=True)
class InceptionScore(OfSets):
    """Exponential of the mean divergence of a picture's classes from the set's: sure of each, and many in all.

    Between 1 and the number of classes; at most the number of pictures or crops.
    """

    needs_reference: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[Column, ...]:
        """IS, or IS_c of crops."""
        return (Column(name=self.titled("IS"), better="up", lowest=1.0, needs_equal_counts=True),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Of probabilities."""
        return self.seeing("probabilities")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The score; nan for less than two pictures."""
        if len(features) < 2:
            return (math.nan,)
        logits = features.flatten(0, 1).double().clamp(min=TINY).log()
        module = torchmetrics("image.inception")
        with undisturbed():
            meter = module.InceptionScore(feature=passing(logits.shape[1]), splits=1)
            meter.update(logits)
            mean, _ = meter.compute()
        return (mean.item(),)
