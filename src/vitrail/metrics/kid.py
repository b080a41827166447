"""Kernel inception distance (Binkowski et al., 2018, https://arxiv.org/abs/1801.01401, sec. 3), by its usual kernel.

The unbiased estimate of the squared maximum mean discrepancy with the kernel k(x, y) = (x.y / dim + 1)^3:

    KID = mean of k over pairs in the one set + mean over pairs in the other - 2 mean over pairs between them

over all pairs of two different pictures, or of crops of two different ones, since crops of one picture are alike.
Usual programs take the mean over random subsets, which all have the same expectation and which are noisier; with one
subset of everything they agree with this to rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, FeatureExtractor
from vitrail.metrics.crops import OfSets
from vitrail.metrics.reference_sets import Remembered, compared, torchmetrics

if TYPE_CHECKING:
    from torch import Tensor


@frozen(kw_only=True)
class Kid(OfSets):
    """Kernel distance of two sets' features, times 1000; around 0 for sets from one distribution, maybe below.

    Not biased by the number of pictures, unlike FID.
    """

    needs_reference: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        """KID, or KID_c of crops, times 1000."""
        return (Column(name=self.titled("KID"), better="down"),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Of features; equal to that of ``fid`` with the same options."""
        return self.seeing("extract")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """1000 times the distance; nan if a set has less than two pictures."""
        true = compared(reference, "kid")
        if min(len(features), len(true)) < 2:
            return (math.nan,)
        return (1000 * discrepancy(features, true, within_reference(true)),)


def discrepancy(one: Tensor, other: Tensor, within_other: float | None = None) -> float:
    """Squared maximum mean discrepancy of two sets of pictures' features, without bias.

    Args:
        one: Float[Tensor, "ones crops dim"].
        other: Float[Tensor, "others crops dim"].
        within_other: ``within(other)``, if it is known.
    """
    if within_other is None:
        within_other = within(other)
    return within(one) + within_other - 2 * float(kernels(one, other).mean())


def within(features: Tensor) -> float:
    """Mean kernel over crops of two different pictures of a set, Float[Tensor, "count crops dim"]."""
    found, (count, crops) = kernels(features, features), features.shape[:2]
    of_one_picture = found.view(count, crops, count, crops).diagonal(dim1=0, dim2=2)
    return float((found.sum() - of_one_picture.sum()) / (count * (count - 1) * crops**2))


within_reference: Remembered[float] = Remembered(within)


def kernels(one: Tensor, other: Tensor) -> Tensor:
    """Of every crop of the one set and every crop of the other, Float64[Tensor, "ones*crops others*crops"]."""
    found: Tensor = torchmetrics("image.kid").poly_kernel(one.flatten(0, 1).double(), other.flatten(0, 1).double())
    return found
