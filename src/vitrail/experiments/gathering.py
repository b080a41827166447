"""From what eyes saw to results: every metric of every row at every size gathered, drawn anew and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrail.core.measuring import Column
from vitrail.errors import ConfigError, nearest
from vitrail.experiments.costs import CALLS, CRITICAL, MEMORY, PREDICTED, Costs, noted
from vitrail.experiments.grid import Cell
from vitrail.experiments.measuring import Loaded, Seen, Size
from vitrail.experiments.meter import Meter
from vitrail.experiments.origin import commit_of_vitrail, machines_of, versions_of
from vitrail.experiments.results import Group, HeatFigure, Numbers, Results
from vitrail.experiments.statistics import Ranking, Sample, rank, sample

if TYPE_CHECKING:
    from rich.console import Console

TOLD_ERRORS = 5


def gather_results(loaded: Loaded, seen: Seen, console: Console, baseline: str | None = None) -> Results:
    """Gather every metric of every row at every size, and compare rows.

    Args:
        loaded: The experiment.
        seen: What eyes saw in its pictures.
        console: For progress.
        baseline: The row to compare with; the first one if None.

    Raises:
        ConfigError: If there is no such row.
    """
    groups, base = _groups(loaded), baseline_of(loaded, baseline)
    sets = _Sets(loaded, seen)
    done = [group for group in groups if group.cells]
    estimates, differences, rankings = _compute(sets, done, base, console)
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
        commit=commit_of_vitrail(),
    )


def baseline_of(loaded: Loaded, wanted: str | None) -> str | None:
    """The row that others are compared with: the one that is wanted, else the first, None if there are no rows.

    Raises:
        ConfigError: If there is no such row.
    """
    rows = list(dict.fromkeys(cell.row for cell in loaded.plan.cells if cell.kind == "picture"))
    if wanted is not None and wanted not in rows:
        raise ConfigError(f"no row {wanted!r} to compare with{nearest(wanted, rows)}")
    return wanted or next(iter(rows), None)


def _groups(loaded: Loaded) -> list[Group]:
    """Rows at sizes, sizes in the plan's order."""
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


class _Sets:
    """Samples of metrics over chosen pairs of a row, each made once; costs are one more metric."""

    def __init__(self, loaded: Loaded, seen: Seen):
        self.metrics: list[Any] = [*loaded.experiment.metrics, Costs()]
        self._loaded, self._seen = loaded, seen
        self._known: dict[tuple[str, Size, int, tuple[int, ...]], Sample] = {}

    def pairs(self, group: Group, number: int) -> tuple[int, ...]:
        """Those whose picture tells a metric anything."""
        if self._is_cost(number):
            return tuple(group.cells)
        looked = self._seen.of(self.metrics[number].eye, [cell.address for cell in group.cells.values()])
        blind = looked.isnan().reshape(len(looked), -1).all(dim=1).tolist()
        return tuple(pair for pair, nothing in zip(group.cells, blind, strict=True) if not nothing)

    def sample(self, group: Group, number: int, pairs: tuple[int, ...]) -> Sample | None:
        """A metric over some pairs; None of none."""
        key = (group.row, group.size, number, pairs)
        if key not in self._known and pairs:
            self._known[key] = self._make(group, number, pairs)
        return self._known.get(key)

    def _make(self, group: Group, number: int, pairs: tuple[int, ...]) -> Sample:
        import torch

        metric, addresses = self.metrics[number], [group.cells[pair].address for pair in pairs]
        resamples, reference = self._loaded.experiment.resamples, None
        if self._is_cost(number):
            looked = torch.stack([noted(self._loaded.outcomes[address]) for address in addresses])
        else:
            looked = self._seen.of(metric.eye, addresses)
            reference = self._seen.references[repr(metric.eye), group.size] if metric.needs_reference else None
        return sample(metric, looked, reference, resamples)

    def _is_cost(self, number: int) -> bool:
        return number == len(self.metrics) - 1


def _compute(
    sets: _Sets, groups: Sequence[Group], baseline: str | None, console: Console
) -> tuple[Numbers, Numbers, list[Ranking]]:
    """Estimates, differences from the baseline, rankings."""
    estimates: Numbers = {}
    differences: Numbers = {}
    rankings: list[Ranking] = []
    with Meter(console, "gathering", len(groups) * len(sets.metrics)) as meter:
        for size in dict.fromkeys(group.size for group in groups):
            here = [group for group in groups if group.size == size]
            base = next((group for group in here if group.row == baseline), None)
            for number in range(len(sets.metrics)):
                pairs = {group.row: sets.pairs(group, number) for group in here}
                for group in here:
                    own = sets.sample(group, number, pairs[group.row])
                    _note(estimates, group, sets.metrics[number].columns, own)
                    if base is not None and group is not base:
                        common = _common(pairs[group.row], pairs[base.row])
                        one, two = sets.sample(group, number, common), sets.sample(base, number, common)
                        _note(differences, group, sets.metrics[number].columns, one and two and one.less(two))
                    meter.step()
                rankings += _ranked(sets, number, here, pairs)
    return estimates, differences, rankings


def _common(*pairs: tuple[int, ...]) -> tuple[int, ...]:
    """Pairs that all have, in order."""
    return tuple(sorted(set(pairs[0]).intersection(*pairs[1:])))


def _note(numbers: Numbers, group: Group, columns: Sequence[Column], found: Sample | None) -> None:
    if found is not None:
        for column, estimate in zip(columns, found.estimates(), strict=True):
            numbers[group.row, group.size, column.name] = estimate


def _ranked(sets: _Sets, number: int, groups: Sequence[Group], pairs: dict[str, tuple[int, ...]]) -> list[Ranking]:
    """Of every column of a metric that has a better direction; costs are not ranked."""
    groups = [group for group in groups if pairs[group.row]]
    columns = list(enumerate(sets.metrics[number].columns))
    if number == len(sets.metrics) - 1 or len(groups) < 2 or all(column.better == "none" for _, column in columns):
        return []
    common = _common(*(pairs[group.row] for group in groups))
    samples = {group.row: found for group in groups if (found := sets.sample(group, number, common)) is not None}
    return [
        rank(samples, index, column.better, column.name, groups[0].size)
        for index, column in columns
        if column.better != "none" and samples
    ]


def _costs_that_tell(groups: Sequence[Group], estimates: Numbers) -> list[Column]:
    """All costs but those that repeat the calls, and memory that nobody looked at."""

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
    """The first of each kind."""
    found: dict[str, str] = {}
    for cell in loaded.plan.cells:
        if loaded.has_failed(cell):
            error = str(loaded.outcomes[cell.address].error)
            height, width = cell.size
            found.setdefault(error, f"{cell.row}, {width}x{height}, seed {cell.run['seed']}: {error}")
    return list(found.values())[:TOLD_ERRORS]
