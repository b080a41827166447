"""Which row is better than which: rows in order, and those that may be the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.statistics import Estimate, Sample, difference


@frozen(kw_only=True)
class Ranking:
    """Rows by one column, from best to worst.

    Attributes:
        column: Its name.
        size: Height and width in pixels.
        count: Pairs that all of them have.
        tiers: Names, in the smallest groups such that every row is told apart from every row of other groups: their
            paired difference is sure. Rows without a number are left out.
        better: Share of draws in which the one row is better than the other, by both names; a tie counts half.
        apart: Whether their paired difference is sure, by both names.
        left_out: Rows with too few of the others' pairs, and how many pictures they have.
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
    """Put rows in order, as far as there is one.

    Args:
        samples: By row, all of the same pairs.
        index: Of the column in them.
        column: It; one way must be better.
        size: Of the pictures.
        left_out: Rows that have too few of these pairs.
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
    """Ordered rows cut wherever all before are told apart from all after."""
    cuts = [
        cut for cut in range(1, len(rows)) if all(apart[before, after] for before in rows[:cut] for after in rows[cut:])
    ]
    return [tuple(rows[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True) if rows]


def _share(less: Sample, sign: float) -> float:
    """Share of draws in which a difference of one column is for the better; without draws, as the value says.

    Draws are moved to the value before their signs are read, but what is equal in both rows as drawn is a tie.
    """
    drawn, moved = (less.resampled, less.centred) if len(less.resampled) else (less.value[None],) * 2
    tied, better = drawn == 0, sign * moved > 0
    share = 0.5 * tied.double() + (better & ~tied).double()
    return float(share[~drawn.isnan()].mean())


def best_of(estimates: Sequence[Estimate], column: Column) -> list[bool]:
    """Which of some numbers may be the best: every one whose interval overlaps that of the best.

    None if the best one has no interval, for then nothing is known; and none of a column that compares at equal
    numbers of pictures only, if they differ.
    """
    known = [each for each in estimates if not math.isnan(each.value)]
    if column.better == "none" or len(known) < 2 or not compares(estimates, column):
        return [False] * len(estimates)
    best = (max if column.better == "up" else min)(known, key=lambda each: each.value)
    return [not math.isnan(each.value + best.low) and each.overlaps(best) for each in estimates]


def compares(estimates: Sequence[Estimate], column: Column) -> bool:
    """Whether numbers may be set against each other: not if a column needs equal numbers of pictures that differ."""
    counts = {each.count for each in estimates if not math.isnan(each.value)}
    return not column.needs_equal_counts or len(counts) < 2
