"""Results as tables, whatever they are then written as."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.metric import Better, Column
from vitrail.experiments.analysis.measurement import Size
from vitrail.experiments.analysis.ranking import Ranking, best_of
from vitrail.experiments.analysis.resampling import FEWEST
from vitrail.experiments.analysis.results import Group, Results, number
from vitrail.experiments.analysis.statistics import Estimate
from vitrail.experiments.report.table_notes import fewer, gaps, how, left_out, of_prompts, tested, uneven


@frozen(kw_only=True)
class Number:
    """A cell that holds a number.

    Attributes:
        estimate: The number and its interval.
        decimals: Shown after the point.
        marked: Whether it is one of the best, or a difference that is one.
        signed: Whether a plus is written.
    """

    estimate: Estimate
    decimals: int = 2
    marked: bool = False
    signed: bool = False

    @property
    def text(self) -> str:
        """The number alone; a dash if there is none."""
        return "–" if math.isnan(self.estimate.value) else self._shown(self.estimate.value)

    @property
    def interval(self) -> str:
        """As ``[low, high]``; empty if there is none or all pictures are alike."""
        if not self.estimate.has_interval:
            return ""
        return f"[{self._shown(self.estimate.low)}, {self._shown(self.estimate.high)}]"

    def _shown(self, value: float) -> str:
        return f"{value:{'+' * self.signed}.{self.decimals}f}"


@frozen(kw_only=True)
class Heading:
    """The head of a column.

    Attributes:
        name: What stands there.
        better: Which way is better, if any is.
    """

    name: str
    better: Better = "none"


@frozen(kw_only=True)
class Table:
    """A table.

    Attributes:
        title: Above it.
        head: Of its columns; the first one names the rows.
        rows: Texts and numbers.
        mark: What a marked number says, as "may be the best"; empty if none is marked.
        notes: Below it.
    """

    title: str
    head: tuple[Heading, ...] = field(converter=as_tuple)
    rows: tuple[tuple[str | Number, ...], ...] = field(converter=as_tuple)
    mark: str = ""
    notes: tuple[str, ...] = field(converter=as_tuple, default=())


def tables_of(results: Results) -> list[Table]:
    """All that a report shows: rows at each size, along each axis, against the baseline, and in order."""
    return [*by_size(results), *by_axis(results), *against_baseline(results), *in_order(results)]


def size_text(size: Size) -> str:
    """A size as width x height."""
    return f"{size[1]}x{size[0]}"


def by_size(results: Results) -> Iterator[Table]:
    """Every row with every number, one table a size."""
    for size in results.sizes:
        groups = results.at(size)
        yield _of_groups(results, groups, "row", [group.row for group in groups], size_text(size))


def by_axis(results: Results) -> Iterator[Table]:
    """Numbers along the only axis of numbers, one table a size and curve; none where ``by_size`` shows the same."""
    axes = list(results.numeric_axes)
    for size in results.sizes if len(axes) == 1 else ():
        for curve, groups in curves(results.at(size), axes[0]).items():
            if 1 < len(groups) < len(results.at(size)):
                places = [group.axes[axes[0]] for group in groups]
                yield _of_groups(results, groups, axes[0], places, f"{curve} over {axes[0]}, {size_text(size)}")


def curves(groups: Sequence[Group], *axes: str) -> dict[str, list[Group]]:
    """Groups that differ in their places on some axes only, numbers in order, by what they have in common."""
    found: dict[str, list[Group]] = {}
    ranks = len({group.ranks for group in groups}) > 1
    for group in groups:
        if all(axis in group.axes for axis in axes):
            others = [f"{name} {place}" for name, place in group.axes.items() if name not in axes]
            shared = [f"{group.ranks} rank{'s' * (group.ranks > 1)}"] if ranks else []
            found.setdefault(", ".join([group.method, *others, *shared]), []).append(group)
    return {
        name: sorted(each, key=lambda group: [number(group.axes[axis]) or 0.0 for axis in axes])
        for name, each in found.items()
    }


def _of_groups(results: Results, groups: Sequence[Group], head: str, names: Sequence[str], title: str) -> Table:
    columns = [*results.columns, *results.costs]
    found = {column.name: [results.estimate(group, column) for group in groups] for column in columns}
    marks = {column.name: best_of(found[column.name], column) for column in columns}
    rows = [
        (name, _count(group), *(_number(found[c.name][line], c, marks[c.name][line]) for c in columns))
        for line, (name, group) in enumerate(zip(names, groups, strict=True))
    ]
    of_numbers = [
        *of_prompts(results, found),
        *fewer(found, [len(group.cells) for group in groups]),
        *uneven(found, columns),
    ]
    return Table(
        title=title,
        head=[Heading(name=head), Heading(name="n"), *(Heading(name=c.name, better=c.better) for c in columns)],
        rows=rows,
        mark="may be the best, its interval overlaps that of the best",
        notes=[*how(results), *gaps(groups), *of_numbers],
    )


def _number(estimate: Estimate, column: Column, marked: bool, signed: bool = False) -> Number:
    return Number(estimate=estimate, decimals=column.decimals, marked=marked, signed=signed)


def _count(group: Group) -> str:
    done = len(group.cells)
    return str(done) if done == group.planned else f"{done}/{group.planned}"


def against_baseline(results: Results) -> Iterator[Table]:
    """Each row less the baseline, over the pairs that both have, one table a size."""
    for size in results.sizes:
        columns = [*results.columns, *(column for column in results.costs if column.name == "seconds")]
        groups = [
            group
            for group in results.at(size)
            if any((group.row, size, column.name) in results.differences for column in columns)
        ]
        if groups:
            yield _differences(results, groups, columns, size)


def _differences(results: Results, groups: Sequence[Group], columns: Sequence[Column], size: Size) -> Table:
    def difference(group: Group, column: Column) -> Estimate:
        return results.differences.get((group.row, size, column.name), Estimate(value=math.nan))

    found = {column.name: [difference(group, column) for group in groups] for column in columns}
    counts = [max(found[column.name][line].count for column in columns) for line in range(len(groups))]
    rows = []
    for line, group in enumerate(groups):
        each = [found[column.name][line] for column in columns]
        cells = [_number(less, c, less.is_sure, signed=True) for less, c in zip(each, columns, strict=True)]
        rows.append((group.row, str(counts[line]), *cells))
    pairs = "n is pairs of the same prompt and seed, which are drawn together."
    return Table(
        title=f"Difference from {results.baseline}, {size_text(size)}",
        head=[Heading(name="row"), Heading(name="n"), *(Heading(name=c.name, better=c.better) for c in columns)],
        rows=rows,
        mark="excludes 0",
        notes=[*how(results), pairs, *of_prompts(results, found), *fewer(found, counts), *tested(columns)],
    )


def in_order(results: Results) -> Iterator[Table]:
    """Rows from best to worst, one table a size; rows that cannot be told apart stand together."""
    for size in results.sizes:
        here = [each for each in results.rankings if each.size == size and each.tiers and each.count >= FEWEST]
        columns = [column for column in results.columns if column.name in {each.column for each in here}]
        if here and results.resamples:
            yield Table(
                title=f"Order, {size_text(size)}",
                head=[Heading(name="column"), Heading(name="n"), Heading(name="from best to worst")],
                rows=[(each.column, str(each.count), _order(each)) for each in here],
                notes=[
                    "> tells apart every row before it from every row after it, by paired differences; ~ does not.",
                    "Each pair of rows is judged at the level of its interval, so of twenty pairs one is told apart by "
                    "chance.",
                    *tested(columns),
                    *left_out(here),
                ],
            )


def _order(ranking: Ranking) -> str:
    return " > ".join(" ~ ".join(tier) for tier in ranking.tiers)
