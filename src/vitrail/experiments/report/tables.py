"""Tables of results, independent of the format that they are written in."""

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
    """A table cell that holds an estimate.

    Attributes:
        estimate: The value and its interval.
        decimals: Number of decimals shown.
        marked: Whether it may be the best, or is a significant difference.
        signed: Whether positive values are shown with a plus.
    """

    estimate: Estimate
    decimals: int = 2
    marked: bool = False
    signed: bool = False

    @property
    def text(self) -> str:
        """The value; a dash if it is nan."""
        return "–" if math.isnan(self.estimate.value) else self._shown(self.estimate.value)

    @property
    def interval(self) -> str:
        """The interval as ``[low, high]``; empty if there is none or its length is 0."""
        if not self.estimate.has_interval:
            return ""
        return f"[{self._shown(self.estimate.low)}, {self._shown(self.estimate.high)}]"

    def _shown(self, value: float) -> str:
        return f"{value:{'+' * self.signed}.{self.decimals}f}"


@frozen(kw_only=True)
class Heading:
    """The head of a table's column.

    Attributes:
        name: The text.
        better: Preferred direction of the values, if any.
    """

    name: str
    better: Better = "none"


@frozen(kw_only=True)
class Table:
    """A table of texts and numbers, independent of its format.

    Attributes:
        title: Title above it.
        head: Heads of the columns; the first column names the rows.
        rows: Cells of each row.
        mark: Meaning of a marked number, e.g. "may be the best"; empty if none is marked.
        notes: Notes below it.
    """

    title: str
    head: tuple[Heading, ...] = field(converter=as_tuple)
    rows: tuple[tuple[str | Number, ...], ...] = field(converter=as_tuple)
    mark: str = ""
    notes: tuple[str, ...] = field(converter=as_tuple, default=())


def tables_of(results: Results) -> list[Table]:
    """Return all tables of a report: by size, along the numeric axis, against the baseline, rankings."""
    return [*by_size(results), *by_axis(results), *against_baseline(results), *in_order(results)]


def size_text(size: Size) -> str:
    """Return a size, height and width in pixels, as ``WIDTHxHEIGHT``."""
    return f"{size[1]}x{size[0]}"


def by_size(results: Results) -> Iterator[Table]:
    """Yield one table per size with every row and column."""
    for size in results.sizes:
        groups = results.at(size)
        yield _of_groups(results, groups, "row", [group.row for group in groups], size_text(size))


def by_axis(results: Results) -> Iterator[Table]:
    """Yield one table per size and curve along a single numeric axis; none where ``by_size`` shows the same rows."""
    axes = list(results.numeric_axes)
    for size in results.sizes if len(axes) == 1 else ():
        for curve, groups in curves(results.at(size), axes[0]).items():
            if 1 < len(groups) < len(results.at(size)):
                places = [group.axes[axes[0]] for group in groups]
                yield _of_groups(results, groups, axes[0], places, f"{curve} over {axes[0]}, {size_text(size)}")


def curves(groups: Sequence[Group], *axes: str) -> dict[str, list[Group]]:
    """Collect the groups that differ on some axes only, sorted by their values there, under the name of the curve."""
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
    """Yield one table per size with each row less the baseline, over the pairs that both have."""
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
    """Yield one table per size with the rows from best to worst by each column; "~" joins the rows of a tier."""
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
