"""Fréchet inception distance (Heusel et al., 2017, https://arxiv.org/abs/1706.08500, eq. 6), through torchmetrics.

    FID = |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))

with means m and covariances C of the features of two sets. C1 C2 is nonzero only on the span of the first set's
centred features, whose dimension is at most the number of pictures less one. So torchmetrics is given both sets in a
basis of that span, and the complement adds its part of |m1 - m2|^2 + Tr C2: the same number, thousands of times faster
with 2048 features and a few dozen pictures, which matters when a set is resampled. The moments of a reference set are
computed once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column, FeatureExtractor
from vitrail.metrics.crops import OfSets
from vitrail.metrics.reference_sets import Remembered, compared, passing, torchmetrics, undisturbed

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-10  # over the largest singular value: smaller ones are rounding errors


@frozen(kw_only=True)
class Fid(OfSets):
    """Fréchet distance of two sets' features, each taken for a normal distribution; 0 for equal sets.

    Biased upwards for small sets, so compare only sets of equally many pictures against the same reference.
    """

    needs_reference: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        """One column: FID of whole pictures, or FID_c of crops."""
        return (Column(name=self.titled("FID"), better="down", decimals=3, lowest=0.0, needs_equal_counts=True),)

    @property
    def extractor(self) -> FeatureExtractor:
        """Extractor of features; equal to that of ``kid`` with the same options, so features are computed once."""
        return self.seeing("extract")

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the distance; nan if a set has fewer than two pictures.

        Raises:
            ConfigError: If there is no reference set, or torchmetrics is not installed.
        """
        true = compared(reference, "fid")
        if min(len(features), len(true)) < 2:
            return (math.nan,)
        return (distance(moments(features.flatten(0, 1)), of_reference(true)),)


@frozen(kw_only=True, eq=False)
class Moments:
    """Mean and centred rows of a set of features, from which the distance is computed.

    Attributes:
        mean: Of the features, Float64[Tensor, "dim"].
        rows: Features less their mean, Float64[Tensor, "rows dim"].
        total: Trace of their covariance, Float64[Tensor, ""].
    """

    mean: Tensor
    rows: Tensor
    total: Tensor


def frechet(one: Tensor, other: Tensor) -> float:
    """Compute the Fréchet distance of two sets of features.

    Args:
        one: Features of the one set, Float[Tensor, "ones dim"].
        other: Features of the other set, Float[Tensor, "others dim"].
    """
    return distance(moments(one), moments(other))


def moments(features: Tensor) -> Moments:
    """Compute the moments of a set of features, Float[Tensor, "count dim"]."""
    features = features.double()
    mean = features.mean(dim=0)
    rows = features - mean
    return Moments(mean=mean, rows=rows, total=rows.square().sum() / (len(rows) - 1))


def condensed(found: Moments) -> Moments:
    """Reduce to at most ``2 * dim`` rows with the same mean and covariance.

    With the triangular R of R'R = X'X for the rows X, the 2 d rows of c R and -c R have the mean 0 and, for a suitable
    c, the same covariance.
    """
    import torch

    count, dim = found.rows.shape
    if count <= 2 * dim:
        return found
    triangle = torch.linalg.qr(found.rows, mode="r").R * math.sqrt((2 * dim - 1) / (2 * (count - 1)))
    return Moments(mean=found.mean, rows=torch.cat([triangle, -triangle]), total=found.total)


of_reference: Remembered[Moments] = Remembered(lambda true: condensed(moments(true.flatten(0, 1))))


def distance(one: Moments, other: Moments) -> float:
    """Compute the Fréchet distance of two sets from their moments (eq. 6)."""
    few, many = sorted((one, other), key=lambda each: len(each.rows))
    basis, shift = span(few.rows), many.mean - few.mean
    inside, shift_inside = many.rows @ basis, shift @ basis
    shift_outside = (shift - basis @ shift_inside).square().sum()
    spread_outside = (many.total - inside.square().sum() / (len(inside) - 1)).clamp(min=0)
    return (through_torchmetrics(few.rows @ basis, inside + shift_inside) + shift_outside + spread_outside).item()


def span(rows: Tensor) -> Tensor:
    """Return an orthonormal basis of the rows' span, of at least one dimension, Float[Tensor, "dim rank"]."""
    import torch

    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    rank = int((sizes > TINY * sizes[0]).sum())
    basis: Tensor = directions[: max(rank, 1)].T
    return basis


def through_torchmetrics(one: Tensor, other: Tensor) -> Tensor:
    """Compute FID of two sets of features, Float64[Tensor, "count dim"], by torchmetrics; Float64[Tensor, ""]."""
    module = torchmetrics("image.fid")
    with undisturbed():
        meter = module.FrechetInceptionDistance(feature=passing(one.shape[1]))
        meter.set_dtype(one.dtype)
        meter.update(one, real=False)
        meter.update(other, real=True)
        distance: Tensor = meter.compute()
    return distance
