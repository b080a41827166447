"""Fréchet inception distance (Heusel et al., 2017, https://arxiv.org/abs/1706.08500, eq. 6), through torchmetrics.

    FID = |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))

with means m and covariances C of the features of two sets. C1 C2 acts in the span of the first set's features about
their mean only, which has at most as many dimensions as it has pictures, less one. So torchmetrics is given both sets
in a basis of that span, and what lies outside adds |m1 - m2|^2 + Tr C2 there: the same number, thousands of times
faster with 2048 features and some dozen pictures, which matters where a set is resampled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.measuring import Column, Eye
from vitrail.metrics.comparing import compared, passing, torchmetrics, undisturbed
from vitrail.metrics.crops import OfSets

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-10  # of the largest singular value: below is rounding


@frozen(kw_only=True)
class Fid(OfSets):
    """Fréchet distance of two sets' features, each taken for a normal distribution; 0 for equal ones.

    Biased upwards in small sets, so compare only sets of equal numbers with the same reference.
    """

    needs_reference: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        """FID, or FID_c of crops."""
        return (Column(name=self.titled("FID"), better="down", decimals=3),)

    @property
    def eye(self) -> Eye:
        """Of features; equal to that of ``kid`` with the same options."""
        return self.seeing("extract")

    def gather(self, looked: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The distance; nan if a set has less than two pictures."""
        true = compared(reference, "fid")
        if min(len(looked), len(true)) < 2:
            return (math.nan,)
        return (frechet(looked.flatten(0, 1), true.flatten(0, 1)),)


def frechet(one: Tensor, other: Tensor) -> float:
    """The Fréchet distance of two sets of features.

    Args:
        one: Float[Tensor, "ones dim"].
        other: Float[Tensor, "others dim"].
    """
    few, many = sorted((one.double(), other.double()), key=len)
    middle = few.mean(dim=0)
    few, many = few - middle, many - middle
    basis = span(few)
    left = many - (many @ basis) @ basis.T
    outside = left.mean(dim=0).square().sum() + left.var(dim=0).sum()
    return (through_torchmetrics(few @ basis, many @ basis) + outside).item()


def span(rows: Tensor) -> Tensor:
    """An orthonormal basis of what the rows span, one dimension at least; Float[Tensor, "dim rank"]."""
    import torch

    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > TINY * sizes[0]).sum())
    basis: Tensor = directions[: max(rank, 1)].T
    return basis


def through_torchmetrics(one: Tensor, other: Tensor) -> Tensor:
    """The distance by torchmetrics, in double precision."""
    module = torchmetrics("image.fid")
    with undisturbed():
        meter = module.FrechetInceptionDistance(feature=passing(one.shape[1]))
        meter.set_dtype(one.dtype)
        meter.update(one, real=False)
        meter.update(other, real=True)
        distance: Tensor = meter.compute()
    return distance
