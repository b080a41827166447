"""Inception score (Salimans et al., 2016, https://arxiv.org/abs/1606.03498, sec. 4), through torchmetrics.

    IS = exp(mean over pictures of KL(p(class | picture) || mean p))

in one split, because the sets are small; published scores often are means over ten splits.
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

TINY = 1e-30  # minimum of a probability, so that its logarithm is finite


@frozen(kw_only=True)
class InceptionScore(OfSets):
    """Exponential of the mean KL divergence of each picture's class distribution from the set's mean distribution.

    High if each picture is classified with confidence and the set covers many classes. Between 1 and the number of
    classes, and at most the number of pictures or crops.
    """

    needs_reference: ClassVar[bool] = False

    @property
    def columns(self) -> tuple[Column, ...]:
        """One column: IS of whole pictures, or IS_c of crops."""
        return (Column(name=self.titled("IS"), better="up", lowest=1.0, needs_equal_counts=True),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Extractor of class probabilities."""
        return self.seeing("probabilities")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the score; nan for fewer than two pictures.

        Raises:
            ConfigError: If torchmetrics is not installed.
        """
        if len(features) < 2:
            return (math.nan,)
        logits = features.flatten(0, 1).double().clamp(min=TINY).log()
        module = torchmetrics("image.inception")
        with undisturbed():
            meter = module.InceptionScore(feature=passing(logits.shape[1]), splits=1)
            meter.update(logits)
            mean, _ = meter.compute()
        return (mean.item(),)
