"""Confidence intervals of metrics of sets of pictures: the bootstrap over pictures, paired between rows.

Pictures are resampled with replacement and the metric computed again, 1000 times by default (Efron & Tibshirani, 1993,
An Introduction to the Bootstrap, ch. 13). The pictures - prompt and seed - are resampled, a reference set is fixed.
Where prompts have several pictures, prompts are resampled instead, each with all of its pictures.

Intervals are percentile intervals, q(0.025) to q(0.975) of the resampled values, with three changes:

- They are shifted so that the mean of the resampled values is the value itself. For a mean this changes only noise.
  For a distance between sets, such as FID, it matters: a resampled set holds pictures twice, which increases the
  distance, so that plain percentiles may lie entirely above the value.
- They are widened by t(n - 1) / z * sqrt(n / (n - 1)) for n resampled units, 1.29 for 8 of them and 1.06 for 32, since
  plain ones are too short for few units; the amount of the expanded percentile interval (Hesterberg, 2014,
  https://arxiv.org/abs/1411.5279), which widens the levels instead.
- They are clipped to the column's range, such as 0 to 1 for a share.

A share of 1 or 0 has an interval of length 0 however few the pictures are, since all resamples are equal.

Differences are paired: both rows have the same prompts and seeds and are resampled together, so that the difficulty of
a prompt cancels. A share's or a count's few values are too coarse for the bootstrap of few pairs: if three of six pairs
differ by 1, the interval excludes 0, though the sign test has a p-value of 1/4. So such a difference must pass an exact
test, too.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

from attrs import evolve, frozen

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.resampling import FEWEST, Drawing

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.95  # confidence level of the intervals
ROUNDING = 1e-5  # relative tolerance; features are in single precision


class Gathers(Protocol):
    """The part of a metric that the bootstrap needs."""

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Compute the columns of a set of pictures, see ``Metric.gather``."""


@frozen(kw_only=True)
class Estimate:
    """A value with its confidence interval.

    Attributes:
        value: Value over all pictures.
        low: Lower end of the interval; nan if there is none.
        high: Upper end of the interval; nan if there is none.
        count: Number of pictures, or of pairs of pictures.
        prompts: Number of different prompts.
        chance: P-value of the exact test of a difference of integers; None where it does not apply.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    count: int = 0
    prompts: int = 0
    chance: float | None = None

    @property
    def half_width(self) -> float:
        """Half of the interval's length; nan without an interval."""
        return (self.high - self.low) / 2

    @property
    def has_interval(self) -> bool:
        """Whether there is an interval that is longer than rounding errors."""
        return self.half_width > ROUNDING * abs(self.value)

    @property
    def is_sure(self) -> bool:
        """Whether a difference is significant: its interval excludes 0 and the exact test, where it applies, agrees."""
        return self.excludes(0.0) and (self.chance is None or self.chance <= 1 - LEVEL)

    def excludes(self, number: float = 0.0) -> bool:
        """Return whether a number lies outside of the interval; False without an interval."""
        return number < self.low or number > self.high

    def overlaps(self, other: Estimate) -> bool:
        """Return whether the intervals overlap; True if one of them is missing."""
        return not (self.low > other.high or other.low > self.high)


@frozen(kw_only=True, eq=False)
class Sample:
    """A metric's columns for one set of pictures and for its bootstrap resamples.

    Samples over the same pairs use the same resamples, so they can be subtracted resample by resample.

    Attributes:
        value: Columns of the set, Float64[Tensor, "columns"].
        resampled: Columns of each resample, Float64[Tensor, "resamples columns"].
        alone: Columns of each single picture, Float64[Tensor, "pictures columns"]; nan for metrics of sets.
        drawing: The resampling.
    """

    value: Tensor
    resampled: Tensor
    alone: Tensor
    drawing: Drawing

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.drawing.prompts)

    def estimates(self, columns: Sequence[Column] = ()) -> tuple[Estimate, ...]:
        """Return one estimate per column.

        Args:
            columns: Columns whose ranges clip the intervals; the remaining ones are not clipped.
        """
        ends = _intervals(self.value, self.resampled, len(self.drawing.clusters))
        known = [*columns, *(Column(name="") for _ in range(len(ends) - len(columns)))]
        return tuple(
            Estimate(
                value=value,
                low=max(low, min(column.lowest, value)),
                high=min(high, max(column.highest, value)),
                count=self.count,
                prompts=self.drawing.kinds,
            )
            for value, (low, high), column in zip(self.value.tolist(), ends, known, strict=True)
        )

    def less(self, other: Sample) -> Sample:
        """Subtract another sample over the same pairs; differences within rounding errors are 0."""
        assert self.drawing == other.drawing
        return Sample(
            value=_difference(self.value, other.value),
            resampled=_difference(self.resampled, other.resampled),
            alone=_difference(self.alone, other.alone),
            drawing=self.drawing,
        )

    def column(self, index: int) -> Sample:
        """Return the sample of one column, by index."""
        here = slice(index, index + 1)
        return Sample(
            value=self.value[here],
            resampled=self.resampled[:, here],
            alone=self.alone[:, here],
            drawing=self.drawing,
        )

    @property
    def centred(self) -> Tensor:
        """Resampled columns, shifted so that their mean is the value, Float64[Tensor, "resamples columns"]."""
        return self.resampled - self.resampled.nanmean(dim=0) + self.value


def difference(less: Sample, index: int, column: Column) -> Estimate:
    """Estimate one column of the difference of two samples, with the exact test where the column is of integers.

    Args:
        less: The difference, from ``Sample.less``.
        index: Index of the column.
        column: The column of the single rows.
    """
    one = less.column(index)
    (found,) = one.estimates([column.of_differences])
    if not column.is_whole or math.isnan(found.low) or one.alone.isnan().any():
        return found
    whole = [round(each) for each in one.alone.flatten().tolist()]
    return evolve(found, chance=chance(whole, one.drawing.cluster_of()))


def _difference(one: Tensor, other: Tensor) -> Tensor:
    rounding = ROUNDING * one.abs().maximum(other.abs())
    less = one - other
    return less.masked_fill(less.abs() <= rounding, 0.0)


def sample(
    metric: Gathers, features: Tensor, reference: Tensor | None, resamples: int, drawing: Drawing | None = None
) -> Sample:
    """Compute a metric of a set and of its bootstrap resamples.

    Args:
        metric: Computes one number per column.
        features: Features of the set, Float[Tensor, "pictures ..."].
        reference: Features of the reference set, Float32[Tensor, "references ..."].
        resamples: Number of resamples; 0 gives no intervals, and so do fewer than three pictures.
        drawing: The resampling; single pictures if None.
    """
    import torch

    drawing = drawing or Drawing.of_each(len(features))
    value = torch.tensor(metric.gather(features, reference), dtype=torch.float64, device="cpu")
    times = resamples if len(features) >= FEWEST else 0
    rows = [metric.gather(features[drawn], reference) for drawn in drawing.draws(times)]
    resampled = torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(times, len(value))
    return Sample(value=value, resampled=resampled, alone=by_itself(metric, features, reference), drawing=drawing)


def by_itself(metric: Gathers, features: Tensor, reference: Tensor | None) -> Tensor:
    """Compute the columns of each single picture.

    Args:
        metric: Computes one number per column.
        features: Features of the set, Float[Tensor, "pictures ..."].
        reference: Features of the reference set, Float32[Tensor, "references ..."].

    Returns:
        Float64[Tensor, "pictures columns"]; nan for metrics of sets.
    """
    import torch

    rows = [metric.gather(features[number : number + 1], reference) for number in range(len(features))]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _intervals(value: Tensor, resampled: Tensor, count: int) -> list[tuple[float, float]]:
    import torch

    if not len(resampled):
        return [(math.nan, math.nan)] * len(value)
    levels = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64, device="cpu")
    ends = value + widening(count) * (resampled.nanquantile(levels, dim=0) - resampled.nanmean(dim=0))
    return [(low, high) for low, high in ends.T.tolist()]


def widening(count: int) -> float:
    """Compute the factor that corrects percentile intervals of ``count`` units: t(n - 1) / z * sqrt(n / (n - 1)).

    The t quantile is computed by its expansion around the normal quantile (Abramowitz & Stegun, 1964, 26.7.5).
    """
    z, freedom = NormalDist().inv_cdf((1 + LEVEL) / 2), count - 1
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    t: float = z + sum(term / float(freedom) ** power for power, term in enumerate(terms, 1))
    return t / z * math.sqrt(count / freedom)


def chance(differences: Sequence[int], clusters: Sequence[Hashable] | None = None) -> float:
    """Compute the two-sided p-value of the sum of paired integer differences under random signs.

    Under the null hypothesis the two values of a pair are exchangeable, so both signs of a difference are equally
    likely (Fisher, 1935, The Design of Experiments, sec. 21). The p-value is the share of all assignments of signs
    whose sum is at least as far from 0. For differences of -1, 0 and 1 this is the two-sided sign test over the pairs
    that differ.

    Args:
        differences: One per pair.
        clusters: Cluster of each difference; those of one cluster share one sign. None if each has its own.

    Returns:
        The p-value in (0, 1]; 1 if all differences are 0.
    """
    sums: dict[Hashable, int] = {}
    for number, each in enumerate(differences):
        cluster = number if clusters is None else clusters[number]
        sums[cluster] = sums.get(cluster, 0) + each
    sizes = [abs(each) for each in sums.values() if each]
    ways = {0: 1}
    for size in sizes:
        longer: dict[int, int] = {}
        for total, count in ways.items():
            for end in (total - size, total + size):
                longer[end] = longer.get(end, 0) + count
        ways = longer
    reached = abs(sum(sums.values()))
    far: int = sum(count for total, count in ways.items() if abs(total) >= reached)
    return far / int(2 ** len(sizes))
