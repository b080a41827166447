"""From features to results: every metric of every row at every size, with bootstrap intervals and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail.core.method.metric import Column
from vitrail.errors import ConfigError, nearest
from vitrail.experiments.analysis.measurement import Loaded, Seen, Size
from vitrail.experiments.analysis.picture_sets import Pairs, Sets, common, rankable
from vitrail.experiments.analysis.ranking import Ranking, rank
from vitrail.experiments.analysis.results import Group, HeatFigure, Numbers, Results
from vitrail.experiments.analysis.statistics import difference
from vitrail.experiments.run.origin import commit_of_vitrail, commits_of, machines_of, versions_of
from vitrail.experiments.spec.cells import Cell
from vitrail.experiments.spec.experiment import CALLS, CRITICAL, MEMORY, PREDICTED, Costs

if TYPE_CHECKING:
    from vitrail.experiments.analysis.measurement import Listener

TOLD_ERRORS = 5
OfRows = dict[str, tuple[Pairs, ...]]  # by row, for each column of a metric the pairs with a value in this column


def gather_results(loaded: Loaded, seen: Seen, listener: Listener, baseline: str | None = None) -> Results:
    """Compute every metric of every row at every size, the differences from the baseline and the rankings.

    Args:
        loaded: The experiment.
        seen: The features of its pictures and of its reference set.
        listener: Receives the progress.
        baseline: Name of the row to compare with; the first row if None.

    Raises:
        ConfigError: If there is no row of that name, or a metric lacks its reference set or an optional dependency.
    """
    groups, base = _groups(loaded), baseline_of(loaded, baseline)
    sets = Sets(loaded, seen)
    done = [group for group in groups if group.cells]
    estimates, differences, rankings = _compute(sets, done, base, listener)
    outcomes = {cell.address: loaded.outcomes[cell.address] for cell in loaded.done}
    return Results(
        title=loaded.experiment.title,
        source=loaded.experiment.source,
        command=loaded.plan.command,
        groups=groups,
        columns=[column for metric in loaded.experiment.metrics for column in metric.columns],
        costs=_costs_that_tell(done, estimates),
        estimates=estimates,
        baseline=base,
        differences=differences,
        rankings=rankings,
        pairs={cell.pair: (cell.run["prompt"], cell.run["seed"]) for cell in loaded.plan.cells},
        files={cell.address: loaded.file(cell) for cell in loaded.done},
        outcomes=outcomes,
        figures=_figures(loaded),
        errors=_errors(loaded),
        resamples=loaded.experiment.resamples,
        machines=machines_of(outcomes.values()),
        versions=versions_of(outcomes.values()),
        commits=commits_of(outcomes.values()),
        commit=commit_of_vitrail(),
    )


def baseline_of(loaded: Loaded, wanted: str | None) -> str | None:
    """Return the row that others are compared with: ``wanted``, else the first row, None if there are no rows.

    Raises:
        ConfigError: If no row is named ``wanted``.
    """
    rows = list(dict.fromkeys(cell.row for cell in loaded.plan.cells if cell.kind == "picture"))
    if wanted is not None and wanted not in rows:
        raise ConfigError(f"no row {wanted!r} to compare with{nearest(wanted, rows)}")
    return wanted or next(iter(rows), None)


def _groups(loaded: Loaded) -> list[Group]:
    """One group per row and size, sizes in the plan's order."""
    cells: dict[Size, dict[str, list[Cell]]] = {}
    for cell in loaded.plan.cells:
        if cell.kind == "picture":
            cells.setdefault(cell.size, {}).setdefault(cell.row, []).append(cell)
    return [_group(row, of_row, loaded) for rows in cells.values() for row, of_row in rows.items()]


def _group(row: str, cells: Sequence[Cell], loaded: Loaded) -> Group:
    first = cells[0]
    return Group(
        row=row,
        method=first.method,
        axes=first.axes,
        ranks=first.ranks,
        size=first.size,
        cells={cell.pair: cell for cell in sorted(cells, key=lambda cell: cell.pair) if cell.address in loaded.homes},
        planned=len(cells),
        failed=sum(loaded.has_failed(cell) for cell in cells),
    )


def _compute(
    sets: Sets, groups: Sequence[Group], baseline: str | None, listener: Listener
) -> tuple[Numbers, Numbers, list[Ranking]]:
    """Compute estimates, differences from the baseline, and rankings of all groups."""
    estimates: Numbers = {}
    differences: Numbers = {}
    rankings: list[Ranking] = []
    with listener.count("gathering", len(groups) * len(sets.metrics)) as meter:
        for size in dict.fromkeys(group.size for group in groups):
            here = [group for group in groups if group.size == size]
            base = next((group for group in here if group.row == baseline), None)
            for number in range(len(sets.metrics)):
                pairs = {group.row: sets.pairs(group, number) for group in here}
                for group in here:
                    estimates |= _estimates(sets, number, group, pairs)
                    if base is not None and group is not base:
                        differences |= _differences(sets, number, group, base, pairs)
                    meter.step()
                rankings += _ranked(sets, number, here, pairs)
    return estimates, differences, rankings


def _estimates(sets: Sets, number: int, group: Group, pairs: OfRows) -> Numbers:
    """Estimate each column over the pictures with a value in this column."""
    found: Numbers = {}
    for index, column in enumerate(sets.columns(number)):
        own = sets.sample(group, number, pairs[group.row][index])
        if own is not None:
            (found[group.row, group.size, column.name],) = own.column(index).estimates([column])
    return found


def _differences(sets: Sets, number: int, group: Group, base: Group, pairs: OfRows) -> Numbers:
    """Estimate each column's difference over the pairs with values in both rows."""
    found: Numbers = {}
    for index, column in enumerate(sets.columns(number)):
        both = common([pairs[group.row][index], pairs[base.row][index]])
        one, two = sets.sample(group, number, both), sets.sample(base, number, both)
        if one is not None and two is not None:
            found[group.row, group.size, column.name] = difference(one.less(two), index, column)
    return found


def _ranked(sets: Sets, number: int, groups: Sequence[Group], pairs: OfRows) -> list[Ranking]:
    """Rank the rows by each column with a preferred direction; costs are not ranked."""
    found = []
    for index, column in enumerate(sets.columns(number)):
        if column.better == "none" or sets.is_cost(number):
            continue
        kept, left = rankable({group.row: pairs[group.row][index] for group in groups})
        shared = common(list(kept.values()))
        here = {group.row: sets.sample(group, number, shared) for group in groups if group.row in kept}
        samples = {row: each for row, each in here.items() if each is not None}
        if len(samples) > 1:
            counts = {row: len(each) for row, each in left.items()}
            found.append(rank(samples, index, column, groups[0].size, counts))
    return found


def _costs_that_tell(groups: Sequence[Group], estimates: Numbers) -> list[Column]:
    """Select the cost columns, without those that equal the calls and without memory if it was never measured."""

    def values(name: str) -> list[float]:
        return [estimates[group.row, group.size, name].value for group in groups]

    silent = {name for name in (CRITICAL, PREDICTED) if values(name) == values(CALLS)}
    if all(math.isnan(value) for value in values(MEMORY)):
        silent.add(MEMORY)
    return [column for column in Costs.columns if column.name not in silent]


def _figures(loaded: Loaded) -> list[HeatFigure]:
    cells = [cell for cell in loaded.plan.cells if cell.kind == "heatmap"]
    return [
        HeatFigure(
            label=cell.row,
            prompt=cell.run["prompt"],
            seed=cell.run["seed"],
            file=loaded.file(cell) if cell.address in loaded.homes else None,
        )
        for cell in cells
    ]


def _errors(loaded: Loaded) -> list[str]:
    """The first failed cell of each different error, at most ``TOLD_ERRORS``."""
    found: dict[str, str] = {}
    for cell in loaded.plan.cells:
        if loaded.has_failed(cell):
            error = str(loaded.outcomes[cell.address].error)
            height, width = cell.size
            found.setdefault(error, f"{cell.row}, {width}x{height}, seed {cell.run['seed']}: {error}")
    return list(found.values())[:TOLD_ERRORS]
