"""Kernel inception distance (Binkowski et al., 2018, https://arxiv.org/abs/1801.01401, sec. 3) with the paper's kernel.

The unbiased estimate of the squared maximum mean discrepancy with the kernel k(x, y) = (x.y / dim + 1)^3:

    KID = mean of k over pairs in the one set + mean over pairs in the other - 2 mean over pairs between them

over all pairs of two different pictures, or of crops of two different pictures, since crops of one picture are
correlated. Common implementations average over random subsets, which has the same expectation and more variance; with
one subset of all pictures they agree with this up to rounding.
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
    """Kernel distance of two sets' features, times 1000; around 0, possibly negative, for sets of one distribution.

    Unbiased at any number of pictures, unlike FID.
    """

    needs_reference: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        """One column: KID of whole pictures, or KID_c of crops, times 1000."""
        return (Column(name=self.titled("KID"), better="down"),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Extractor of features; equal to that of ``fid`` with the same options, so features are computed once."""
        return self.seeing("extract")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return 1000 times the distance; nan if a set has fewer than two pictures.

        Raises:
            ConfigError: If there is no reference set, or torchmetrics is not installed.
        """
        true = compared(reference, "kid")
        if min(len(features), len(true)) < 2:
            return (math.nan,)
        return (1000 * discrepancy(features, true, within_reference(true)),)


def discrepancy(one: Tensor, other: Tensor, within_other: float | None = None) -> float:
    """Compute the unbiased squared maximum mean discrepancy of two sets of features.

    Args:
        one: Features of the one set, Float[Tensor, "ones crops dim"].
        other: Features of the other set, Float[Tensor, "others crops dim"].
        within_other: ``within(other)``, if already computed.
    """
    if within_other is None:
        within_other = within(other)
    return within(one) + within_other - 2 * float(kernels(one, other).mean())


def within(features: Tensor) -> float:
    """Compute the mean kernel over crops of two different pictures of a set, Float[Tensor, "count crops dim"]."""
    found, (count, crops) = kernels(features, features), features.shape[:2]
    of_one_picture = found.view(count, crops, count, crops).diagonal(dim1=0, dim2=2)
    return float((found.sum() - of_one_picture.sum()) / (count * (count - 1) * crops**2))


within_reference: Remembered[float] = Remembered(within)


def kernels(one: Tensor, other: Tensor) -> Tensor:
    """Compute the kernel of each crop of one set with each of the other, Float64[Tensor, "ones*crops others*crops"]."""
    found: Tensor = torchmetrics("image.kid").poly_kernel(one.flatten(0, 1).double(), other.flatten(0, 1).double())
    return found
