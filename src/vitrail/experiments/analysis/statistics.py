"""How sure a number of a set of pictures is: the bootstrap over pictures, paired between rows.

Pictures are drawn anew with replacement and the metric gathered again, 1000 times (Efron & Tibshirani, 1993, An
Introduction to the Bootstrap, ch. 13). What varies is the picture - prompt and seed -, while a reference set stays.
Where a prompt has several pictures, prompts are drawn instead, each with all of its pictures.

Intervals are percentile intervals, q(0.025) to q(0.975) of the resampled numbers, with three changes:

- They are moved so that the mean of the resampled numbers is the number itself. For a mean this changes nothing but
  noise. For a distance between sets, such as FID, it does: a resampled set holds pictures twice, which alone makes the
  distance larger, so that plain percentiles may lie wholly above the number that they are of.
- They are widened by t(n - 1) / z * sqrt(n / (n - 1)) for n drawn things, 1.29 for 8 of them and 1.06 for 32, since
  plain ones are too short for few; the amount of the expanded percentile interval (Hesterberg, 2014,
  https://arxiv.org/abs/1411.5279), which widens the levels instead.
- They end where the column's values end, as a share's do at 0 and 1.

A share of 1 or 0 has an interval of no length however few the pictures are: what was never seen is never drawn.

Differences are paired: both rows are of the same prompts and seeds and are drawn together, so that a hard prompt is
hard for both. A share's or a count's few values are too coarse for the bootstrap of few pairs: three of six pairs that
differ by 1 exclude 0, though signs alone do so in one case of four. So such a difference must pass an exact test, too.
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

LEVEL = 0.95  # share of intervals that should hold the true number
ROUNDING = 1e-5  # of a number; eyes see in single precision


class Gathers(Protocol):
    """What is needed of a metric here."""

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The columns of a set of pictures."""


@frozen(kw_only=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: Of all pictures.
        low: Where its interval begins; nan if it has none.
        high: And ends.
        count: Pictures, or pairs of pictures, that it is of.
        prompts: Different prompts among them.
        chance: Of a difference of whole numbers, how often signs alone give one as large; None where nobody asks that.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    count: int = 0
    prompts: int = 0
    chance: float | None = None

    @property
    def half_width(self) -> float:
        """Half of the interval's length; nan if there is none."""
        return (self.high - self.low) / 2

    @property
    def has_interval(self) -> bool:
        """Whether it has one of more length than rounding gives."""
        return self.half_width > ROUNDING * abs(self.value)

    @property
    def is_sure(self) -> bool:
        """Whether a difference is one: its interval excludes 0, and the exact test, where there is one, agrees."""
        return self.excludes(0.0) and (self.chance is None or self.chance <= 1 - LEVEL)

    def excludes(self, number: float = 0.0) -> bool:
        """Whether a number lies outside of the interval; never if there is none."""
        return number < self.low or number > self.high

    def overlaps(self, other: Estimate) -> bool:
        """Whether both could be the same; a number without an interval could be any."""
        return not (self.low > other.high or other.low > self.high)


@frozen(kw_only=True, eq=False)
class Sample:
    """A metric's columns of one set of pictures, and of that set drawn anew many times.

    Samples of the same pairs are drawn alike, so they can be compared draw by draw.

    Attributes:
        value: Float64[Tensor, "columns"].
        resampled: Float64[Tensor, "resamples columns"].
        alone: Of each picture by itself, Float64[Tensor, "pictures columns"]; nan where one picture is no set.
        drawing: What was drawn.
    """

    value: Tensor
    resampled: Tensor
    alone: Tensor
    drawing: Drawing

    @property
    def count(self) -> int:
        """Pictures."""
        return len(self.drawing.prompts)

    def estimates(self, columns: Sequence[Column] = ()) -> tuple[Estimate, ...]:
        """One a column.

        Args:
            columns: Where their values end; no end is known of columns that are not given.
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
        """The difference of two sets of the same pairs, drawn together; 0 where only rounding tells them apart."""
        assert self.drawing == other.drawing
        return Sample(
            value=_difference(self.value, other.value),
            resampled=_difference(self.resampled, other.resampled),
            alone=_difference(self.alone, other.alone),
            drawing=self.drawing,
        )

    def column(self, index: int) -> Sample:
        """One column of it."""
        here = slice(index, index + 1)
        return Sample(
            value=self.value[here],
            resampled=self.resampled[:, here],
            alone=self.alone[:, here],
            drawing=self.drawing,
        )

    @property
    def centred(self) -> Tensor:
        """The resampled columns, moved so that their mean is the value; Float64[Tensor, "resamples columns"]."""
        return self.resampled - self.resampled.nanmean(dim=0) + self.value


def difference(less: Sample, index: int, column: Column) -> Estimate:
    """A column of the difference of two sets.

    Args:
        less: The difference.
        index: Of the column in it.
        column: It.
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
    """Gather a set, and gather it drawn anew.

    Args:
        metric: Answers a number a column.
        features: What its feature extractor gives, Float[Tensor, "pictures ..."].
        reference: In the reference set, Float32[Tensor, "references ..."].
        resamples: How often; 0 gives no intervals, as fewer than three pictures do.
        drawing: What to draw; each picture by itself if None.
    """
    import torch

    drawing = drawing or Drawing.of_each(len(features))
    value = torch.tensor(metric.gather(features, reference), dtype=torch.float64, device="cpu")
    times = resamples if len(features) >= FEWEST else 0
    rows = [metric.gather(features[drawn], reference) for drawn in drawing.draws(times)]
    resampled = torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(times, len(value))
    return Sample(value=value, resampled=resampled, alone=by_itself(metric, features, reference), drawing=drawing)


def by_itself(metric: Gathers, features: Tensor, reference: Tensor | None) -> Tensor:
    """The columns of every picture by itself, Float64[Tensor, "pictures columns"]; nan where one is no set."""
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
    """By how much percentile intervals of a few pictures are too short: t(n - 1) / z * sqrt(n / (n - 1)).

    The t quantile by its expansion around the normal one (Abramowitz & Stegun, 1964, 26.7.5).
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
    """How often signs alone would give a sum as far from 0 as that of some whole numbers.

    Args:
        differences: Of pairs.
        clusters: What each is of; differences of one cluster have one sign together. None if each is its own.

    Returns:
        In (0, 1]; 1 if no difference is other than 0.
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
