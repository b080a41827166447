"""Kernel inception distance (Binkowski et al., 2018, https://arxiv.org/abs/1801.01401, sec. 3), by its usual kernel.

The unbiased estimate of the squared maximum mean discrepancy with the kernel k(x, y) = (x.y / dim + 1)^3:

    KID = mean of k over pairs in the one set + mean over pairs in the other - 2 mean over pairs between them

over all pairs of two different pictures. Usual programs take the mean over random subsets, which all have the same
expectation and which are noisier; with one subset of everything they agree with this to rounding.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.measuring import Column, Eye
from vitrail.metrics.comparing import compared, torchmetrics
from vitrail.metrics.crops import OfSets
from vitrail.metrics.remembered import Remembered

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
    def eye(self) -> Eye:
        """Of features; equal to that of ``fid`` with the same options."""
        return self.seeing("extract")

    def gather(self, looked: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """1000 times the distance; nan if a set has less than two pictures."""
        true = compared(reference, "kid")
        if min(len(looked), len(true)) < 2:
            return (math.nan,)
        return (1000 * discrepancy(looked.flatten(0, 1), true.flatten(0, 1), within_reference(true)),)


def discrepancy(one: Tensor, other: Tensor, within_other: float | None = None) -> float:
    """Squared maximum mean discrepancy of two sets of features, without bias.

    Args:
        one: Float[Tensor, "ones dim"].
        other: Float[Tensor, "others dim"].
        within_other: ``within(other)``, if it is known.
    """
    kernel = torchmetrics("image.kid").poly_kernel
    if within_other is None:
        within_other = within(other)
    return within(one) + within_other - 2 * float(kernel(one.double(), other.double()).mean())


def within(features: Tensor) -> float:
    """Mean kernel over pairs of two different pictures of a set, Float[Tensor, "count dim"]."""
    kernel = torchmetrics("image.kid").poly_kernel
    features = features.double()
    return among_others(kernel(features, features))


within_reference: Remembered[float] = Remembered(lambda true: within(true.flatten(0, 1)))


def among_others(kernel: Tensor) -> float:
    """Mean of a square matrix outside of its diagonal."""
    count = len(kernel)
    return float((kernel.sum() - kernel.trace()) / (count * (count - 1)))
