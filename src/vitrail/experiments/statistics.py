"""How sure a number of a set of pictures is: the bootstrap over pictures, paired between rows.

Pictures are drawn anew with replacement and the metric gathered again, 1000 times (Efron & Tibshirani, 1993, An
Introduction to the Bootstrap, ch. 13). What varies is the picture - prompt and seed -, while a reference set stays.

Intervals are percentile intervals, q(0.025) to q(0.975) of the resampled numbers, with two changes:

- They are moved so that the mean of the resampled numbers is the number itself. For a mean this changes nothing but
  noise. For a distance between sets, such as FID, it does: a resampled set holds pictures twice, which alone makes the
  distance larger, so that plain percentiles may lie wholly above the number that they are of.
- They are widened by t(n - 1) / z * sqrt(n / (n - 1)) for n pictures, 1.29 for 8 of them and 1.06 for 32, since plain
  ones are too short for few pictures; the amount of the expanded percentile interval (Hesterberg, 2014,
  https://arxiv.org/abs/1411.5279), which widens the levels instead.

A share of 1 or 0 has an interval of no length however few the pictures are: what was never seen is never drawn.

Differences are paired: both rows are of the same prompts and seeds and are drawn together, so that a hard prompt is
hard for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from vitrail.core.fields import as_tuple
from vitrail.core.measuring import Better
from vitrail.core.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.95  # share of intervals that should hold the true number
SEED = 0  # of the draws, the same for every row
ROUNDING = 1e-5  # of a number; eyes see in single precision
FEWEST = 3  # pictures, below which nothing can be said about an interval


class Gathers(Protocol):
    """What is needed of a metric here."""

    def gather(self, looked: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """The columns of a set of pictures."""


@frozen(kw_only=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: Of all pictures.
        low: Where its interval begins; nan if it has none.
        high: And ends.
        count: Pictures, or pairs of pictures, that it is of.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    count: int = 0

    @property
    def half_width(self) -> float:
        """Half of the interval's length; nan if there is none."""
        return (self.high - self.low) / 2

    def excludes(self, number: float = 0.0) -> bool:
        """Whether a number lies outside of the interval; never if there is none."""
        return number < self.low or number > self.high

    def overlaps(self, other: Estimate) -> bool:
        """Whether both could be the same; a number without an interval could be any."""
        return not (self.low > other.high or other.low > self.high)


@frozen(kw_only=True, eq=False)
class Sample:
    """A metric's columns of one set of pictures, and of that set drawn anew many times.

    Samples with the same number of pictures and resamples are drawn alike, so they can be compared draw by draw.

    Attributes:
        value: Float64[Tensor, "columns"].
        resampled: Float64[Tensor, "resamples columns"].
        count: Pictures.
    """

    value: Tensor
    resampled: Tensor
    count: int

    def estimates(self) -> tuple[Estimate, ...]:
        """One a column."""
        return tuple(
            Estimate(value=value, low=low, high=high, count=self.count)
            for value, (low, high) in zip(
                self.value.tolist(), _intervals(self.value, self.resampled, self.count), strict=True
            )
        )

    def less(self, other: Sample) -> Sample:
        """The difference of two sets of the same pairs, drawn together; 0 where only rounding tells them apart."""
        assert self.count == other.count
        return Sample(
            value=_difference(self.value, other.value),
            resampled=_difference(self.resampled, other.resampled),
            count=self.count,
        )

    @property
    def centred(self) -> Tensor:
        """The resampled columns, moved so that their mean is the value; Float64[Tensor, "resamples columns"]."""
        return self.resampled - self.resampled.nanmean(dim=0) + self.value


def _difference(one: Tensor, other: Tensor) -> Tensor:
    rounding = ROUNDING * one.abs().maximum(other.abs())
    difference = one - other
    return difference.masked_fill(difference.abs() <= rounding, 0.0)


def sample(metric: Gathers, looked: Tensor, reference: Tensor | None, resamples: int) -> Sample:
    """Gather a set, and gather it drawn anew.

    Args:
        metric: Answers a number a column.
        looked: What its eye saw, Float[Tensor, "pictures ..."].
        reference: In the reference set, Float32[Tensor, "references ..."].
        resamples: How often; 0 gives no intervals, as fewer than two pictures do.
    """
    import torch

    value = torch.tensor(metric.gather(looked, reference), dtype=torch.float64)
    times = resamples if len(looked) >= FEWEST else 0
    rows = [metric.gather(looked[drawn], reference) for drawn in draws(len(looked), times)]
    resampled = torch.tensor(rows, dtype=torch.float64).reshape(times, len(value))
    return Sample(value=value, resampled=resampled, count=len(looked))


def draws(count: int, resamples: int) -> Tensor:
    """Which pictures are drawn, Int64[Tensor, "resamples count"]; the same for every set of as many pictures."""
    import torch

    generator = Streams(SEED).generator("bootstrap", count)
    return torch.randint(max(count, 1), (resamples, count), generator=generator)


def _intervals(value: Tensor, resampled: Tensor, count: int) -> list[tuple[float, float]]:
    import torch

    if not len(resampled):
        return [(math.nan, math.nan)] * len(value)
    levels = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
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


@frozen(kw_only=True)
class Ranking:
    """Rows by one column, from best to worst.

    Attributes:
        column: Its name.
        size: Height and width in pixels.
        count: Pairs that all of them have.
        tiers: Names, in the smallest groups such that every row is told apart from every row of other groups: the
            interval of their paired difference excludes 0. Rows without a number are left out.
        better: Share of draws in which the one row is better than the other, by both names; a tie counts half.
    """

    column: str
    size: tuple[int, int]
    count: int
    tiers: tuple[tuple[str, ...], ...] = field(converter=as_tuple)
    better: dict[tuple[str, str], float]


def rank(samples: dict[str, Sample], index: int, better: Better, column: str, size: tuple[int, int]) -> Ranking:
    """Put rows in order, as far as there is one.

    Args:
        samples: By row, all of the same pairs.
        index: Of the column in them.
        better: ``up`` or ``down``.
        column: Its name.
        size: Of the pictures.
    """
    sign = 1.0 if better == "up" else -1.0
    known = [name for name, each in samples.items() if not math.isnan(each.value[index])]
    known.sort(key=lambda name: -sign * float(samples[name].value[index]))
    shares = {
        (one, two): _share(samples[one].less(samples[two]), index, sign) for one in known for two in known if one != two
    }
    apart = {(one, two): samples[one].less(samples[two]).estimates()[index].excludes() for one, two in shares}
    count = next(iter(samples.values())).count if samples else 0
    return Ranking(column=column, size=size, count=count, tiers=_tiers(known, apart), better=shares)


def _tiers(rows: Sequence[str], apart: dict[tuple[str, str], bool]) -> list[tuple[str, ...]]:
    """Ordered rows cut wherever all before are told apart from all after."""
    cuts = [
        cut for cut in range(1, len(rows)) if all(apart[before, after] for before in rows[:cut] for after in rows[cut:])
    ]
    return [tuple(rows[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True) if rows]


def _share(difference: Sample, index: int, sign: float) -> float:
    """Share of draws in which a difference is for the better; without draws, as the value says."""
    moved = sign * (difference.centred if len(difference.resampled) else difference.value[None])[:, index]
    moved = moved[~moved.isnan()]
    return float(((moved > 0).double() + 0.5 * (moved == 0).double()).mean())


def best_of(estimates: Sequence[Estimate], better: Better) -> list[bool]:
    """Which of some numbers may be the best: every one whose interval overlaps that of the best.

    None if the best one has no interval, for then nothing is known.
    """
    known = [each for each in estimates if not math.isnan(each.value)]
    if better == "none" or len(known) < 2:
        return [False] * len(estimates)
    best = (max if better == "up" else min)(known, key=lambda each: each.value)
    return [not math.isnan(each.value + best.low) and each.overlaps(best) for each in estimates]
