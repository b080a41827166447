"""Rankings of rows by a column, and the rows that may be the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.statistics import Estimate, Sample, difference


@frozen(kw_only=True)
class Ranking:
    """Order of rows by one column, from best to worst.

    Attributes:
        column: The column's name.
        size: Height and width in pixels.
        count: Number of pairs that all ranked rows have.
        tiers: Names of rows in the smallest groups such that any two rows of different groups differ significantly, by
            their paired difference. Rows without a value are left out.
        better: Share of resamples in which the first row is better than the second, by both names; a tie counts half.
        apart: Whether the paired difference of two rows is significant, by both names.
        left_out: Rows with too few of the common pairs, and how many pictures they have.
    """

    column: str
    size: tuple[int, int]
    count: int
    tiers: tuple[tuple[str, ...], ...] = field(converter=as_tuple)
    better: dict[tuple[str, str], float]
    apart: dict[tuple[str, str], bool]
    left_out: dict[str, int] = field(factory=dict)


def rank(
    samples: dict[str, Sample],
    index: int,
    column: Column,
    size: tuple[int, int],
    left_out: dict[str, int] | None = None,
) -> Ranking:
    """Rank rows by one column, with tiers of rows that do not differ significantly.

    Args:
        samples: Samples by row, all over the same pairs.
        index: Index of the column in the samples.
        column: The column; its ``better`` is "up" or "down".
        size: Height and width of the pictures in pixels.
        left_out: Rows with too few of these pairs, and how many pictures they have.
    """
    sign = 1.0 if column.better == "up" else -1.0
    known = [name for name, each in samples.items() if not math.isnan(each.value[index])]
    known.sort(key=lambda name: -sign * float(samples[name].value[index]))
    shares, apart = {}, {}
    for place, one in enumerate(known):
        for two in known[place + 1 :]:
            less = samples[one].less(samples[two])
            shares[one, two] = _share(less.column(index), sign)
            apart[one, two] = apart[two, one] = difference(less, index, column).is_sure
    both_ways = {(one, two): _either(shares, one, two) for one in known for two in known if one != two}
    return Ranking(
        column=column.name,
        size=size,
        count=next(iter(samples.values())).count if samples else 0,
        tiers=_tiers(known, apart),
        better=both_ways,
        apart=apart,
        left_out=left_out or {},
    )


def _either(shares: dict[tuple[str, str], float], one: str, two: str) -> float:
    return shares[one, two] if (one, two) in shares else 1.0 - shares[two, one]


def _tiers(rows: Sequence[str], apart: dict[tuple[str, str], bool]) -> list[tuple[str, ...]]:
    """Cut ordered rows wherever all rows before differ significantly from all rows after."""
    cuts = [
        cut for cut in range(1, len(rows)) if all(apart[before, after] for before in rows[:cut] for after in rows[cut:])
    ]
    return [tuple(rows[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True) if rows]


def _share(less: Sample, sign: float) -> float:
    """Share of resamples in which a one-column difference is an improvement; without resamples, of the value itself.

    Resamples are centred on the value before their signs are taken; those of exactly 0 before centring are ties.
    """
    drawn, moved = (less.resampled, less.centred) if len(less.resampled) else (less.value[None],) * 2
    tied, better = drawn == 0, sign * moved > 0
    share = 0.5 * tied.double() + (better & ~tied).double()
    return float(share[~drawn.isnan()].mean())


def best_of(estimates: Sequence[Estimate], column: Column) -> list[bool]:
    """Return for each estimate whether it may be the best: whether its interval overlaps that of the best one.

    All False if the best one has no interval, if there are fewer than two values, if the column has no preferred
    direction, or if it needs equal numbers of pictures and they differ.
    """
    known = [each for each in estimates if not math.isnan(each.value)]
    if column.better == "none" or len(known) < 2 or not compares(estimates, column):
        return [False] * len(estimates)
    best = (max if column.better == "up" else min)(known, key=lambda each: each.value)
    return [not math.isnan(each.value + best.low) and each.overlaps(best) for each in estimates]


def compares(estimates: Sequence[Estimate], column: Column) -> bool:
    """Return whether estimates are comparable: False if the column needs equal counts of pictures and they differ."""
    counts = {each.count for each in estimates if not math.isnan(each.value)}
    return not column.needs_equal_counts or len(counts) < 2
