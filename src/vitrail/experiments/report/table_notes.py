"""Notes below tables: intervals, sets of pictures, comparisons that are left out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.ranking import Ranking, compares
from vitrail.experiments.analysis.resampling import FEWEST, prompts_note
from vitrail.experiments.analysis.results import Group, Results
from vitrail.experiments.analysis.statistics import LEVEL, Estimate

Found = dict[str, list[Estimate]]  # by a column's name, an estimate per row


def how(results: Results) -> list[str]:
    """Return the notes on the bootstrap; none without resamples."""
    if not results.resamples:
        return []
    by = f"by the bootstrap over pictures, {FEWEST} of them or more, {results.resamples} draws"
    return [
        f"[low, high] is the {LEVEL:.0%} interval {by}.",
        "A number without one is the same in every draw, which says little of few pictures.",
    ]


def of_prompts(results: Results, found: Found) -> list[str]:
    """Return the note on rows with several pictures per prompt; none without resamples.

    Pictures and prompts of a row are counted in its column with most pictures.
    """
    columns = list(found.values()) if results.resamples else []
    rows = [max(row, key=lambda each: each.count) for row in zip(*columns, strict=True)] if columns else []
    note = prompts_note([(each.count, each.prompts) for each in rows])
    return [note] if note else []


def gaps(groups: Sequence[Group]) -> list[str]:
    """Return the note on failed and missing cells."""
    failed, missing = sum(group.failed for group in groups), sum(group.missing for group in groups)
    if not failed + missing:
        return []
    parts = [f"{count} {what}" for count, what in ((failed, "failed"), (missing, "missing")) if count]
    return [f"n is pictures done of those planned: {' and '.join(parts)}."]


def fewer(found: Found, counts: Sequence[int]) -> list[str]:
    """Return the note on columns without a value for some pictures, e.g. sharpness of objects where there are none.

    Args:
        found: By column, an estimate per row.
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
    """Return the note on columns that are comparable at equal counts of pictures only, where the counts differ."""
    names = [c.name for c in columns if c.better != "none" and not compares(found[c.name], c)]
    if not names:
        return []
    return [f"No best is marked of {', '.join(names)}: with fewer pictures another number comes out, and rows differ."]


def tested(columns: Sequence[Column]) -> list[str]:
    """Return the note on columns whose differences must pass the exact test."""
    names = [column.name for column in columns if column.is_whole]
    if not names:
        return []
    return [
        f"Of {', '.join(names)}, whole numbers of each picture, a difference must besides pass the exact sign test "
        f"at {1 - LEVEL:.0%}."
    ]


def left_out(rankings: Sequence[Ranking]) -> list[str]:
    """Return the note on rows that some rankings leave out, with the columns of these rankings."""
    columns: dict[str, list[str]] = {}
    for ranking in rankings:
        for row, count in ranking.left_out.items():
            columns.setdefault(f"{row} ({count} picture{'s' * (count > 1)})", []).append(ranking.column)
    parts = [f"{row} in {', '.join(names)}" for row, names in columns.items()]
    return [f"Left out, since too few of its pairs are also the others': {'; '.join(parts)}."] if parts else []
