"""What stands below tables: what intervals are, what numbers are of, and what could not be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.ranking import Ranking, compares
from vitrail.experiments.analysis.resampling import FEWEST, prompts_note
from vitrail.experiments.analysis.results import Group, Results
from vitrail.experiments.analysis.statistics import LEVEL, Estimate

Found = dict[str, list[Estimate]]  # by a column's name, a number of each row


def how(results: Results) -> list[str]:
    """Where intervals come from."""
    if not results.resamples:
        return []
    by = f"by the bootstrap over pictures, {FEWEST} of them or more, {results.resamples} draws"
    return [
        f"[low, high] is the {LEVEL:.0%} interval {by}.",
        "A number without one is the same in every draw, which says little of few pictures.",
    ]


def of_prompts(results: Results, found: Found) -> list[str]:
    """Which sets have several pictures of a prompt, in the column that has most of them; nothing without draws."""
    columns = list(found.values()) if results.resamples else []
    rows = [max(row, key=lambda each: each.count) for row in zip(*columns, strict=True)] if columns else []
    note = prompts_note([(each.count, each.prompts) for each in rows])
    return [note] if note else []


def gaps(groups: Sequence[Group]) -> list[str]:
    """What was planned and is not there."""
    failed, missing = sum(group.failed for group in groups), sum(group.missing for group in groups)
    if not failed + missing:
        return []
    parts = [f"{count} {what}" for count, what in ((failed, "failed"), (missing, "missing")) if count]
    return [f"n is pictures done of those planned: {' and '.join(parts)}."]


def fewer(found: Found, counts: Sequence[int]) -> list[str]:
    """Columns that have no number of some pictures, such as a size of objects of pictures without any.

    Args:
        found: By column, a number of each row.
        counts: n of each row, as the table shows it.
    """
    parts = []
    for name, estimates in found.items():
        known = [
            each.count
            for each, count in zip(estimates, counts, strict=True)
            if each.count < count and not math.isnan(each.value)
        ]
        if known:
            parts.append(f"{name} {min(known)}" + (f" to {max(known)}" if len(set(known)) > 1 else ""))
    return [f"Some pictures have no number, so of fewer than n are: {', '.join(parts)}."] if parts else []


def uneven(found: Found, columns: Sequence[Column]) -> list[str]:
    """Columns that are compared at equal numbers only, where rows have different ones."""
    names = [c.name for c in columns if c.better != "none" and not compares(found[c.name], c)]
    if not names:
        return []
    return [f"No best is marked of {', '.join(names)}: with fewer pictures another number comes out, and rows differ."]


def tested(columns: Sequence[Column]) -> list[str]:
    """Which differences must pass the exact test."""
    names = [column.name for column in columns if column.is_whole]
    if not names:
        return []
    return [
        f"Of {', '.join(names)}, whole numbers of each picture, a difference must besides pass the exact sign test "
        f"at {1 - LEVEL:.0%}."
    ]


def left_out(rankings: Sequence[Ranking]) -> list[str]:
    """Rows that are in no order, by the columns in which they are not."""
    columns: dict[str, list[str]] = {}
    for ranking in rankings:
        for row, count in ranking.left_out.items():
            columns.setdefault(f"{row} ({count} picture{'s' * (count > 1)})", []).append(ranking.column)
    parts = [f"{row} in {', '.join(names)}" for row, names in columns.items()]
    return [f"Left out, since too few of its pairs are also the others': {'; '.join(parts)}."] if parts else []
