"""Results of an experiment as data: estimates with intervals, differences, rankings, provenance."""

from __future__ import annotations

import math
from pathlib import Path

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.measurement import Size
from vitrail.experiments.analysis.ranking import Ranking
from vitrail.experiments.analysis.statistics import Estimate
from vitrail.experiments.run.store import Outcome
from vitrail.experiments.spec.cells import Cell


@frozen(kw_only=True)
class Group:
    """The cells of one row at one size.

    Attributes:
        row: The row's name in tables.
        method: The method's label.
        axes: Name of each axis to the name of the setting on it.
        ranks: Number of processes that shared the work.
        size: Height and width in pixels.
        cells: Finished cells, by pair.
        planned: Number of cells in the plan.
        failed: Number of cells that ended with an error; the remaining ones are missing.
    """

    row: str
    method: str
    axes: dict[str, str]
    ranks: int
    size: Size
    cells: dict[int, Cell]
    planned: int
    failed: int

    @property
    def curve(self) -> str:
        """The row's name without the number of ranks; rows of one curve differ in that number only."""
        return self.row.removesuffix(f", {self.ranks} rank{'s' * (self.ranks > 1)}")

    @property
    def missing(self) -> int:
        """Number of cells that were not run or whose picture file is missing."""
        return self.planned - self.failed - len(self.cells)


@frozen(kw_only=True)
class HeatFigure:
    """A heat map of a mask source.

    Attributes:
        label: Label of the mask source.
        prompt: Prompt of the sampled picture.
        seed: Seed of the sampled picture.
        file: The figure's file; None if it is not finished.
    """

    label: str
    prompt: str
    seed: int
    file: Path | None


Numbers = dict[tuple[str, Size, str], Estimate]  # by row, size and column's name


@frozen(kw_only=True, eq=False)
class Results:
    """The data that tables, plots and pages are made from.

    Attributes:
        title: Title of the experiment.
        source: Table or figure of a paper that it corresponds to.
        command: The command line that sampled it.
        groups: Rows at sizes, in the plan's order; some may have no finished cells.
        columns: Columns of the metrics.
        costs: Columns of time, evaluations and memory, without redundant and unmeasured ones.
        estimates: Estimates by row, size and column.
        baseline: Row that ``differences`` compares with.
        differences: Each row less the baseline, over the pairs that both have.
        rankings: For each column with a preferred direction, at each size with two rows or more.
        pairs: Prompt and seed of each pair.
        files: Pictures of finished cells, by address.
        outcomes: Outcomes of finished cells, by address.
        figures: Heat maps of mask sources.
        errors: Different errors of failed cells, the first few, each with the first cell that raised it.
        resamples: Number of bootstrap resamples.
        machines: Machines that sampled, with their numbers of cells.
        versions: Versions of Vitrail and of the libraries that determine pixels.
        commits: Commits of Vitrail that sampled, with their numbers of cells.
        commit: Commit of the Vitrail that writes the report; None if it is not a checkout.
    """

    title: str
    source: str
    command: str
    groups: tuple[Group, ...] = field(converter=as_tuple)
    columns: tuple[Column, ...] = field(converter=as_tuple)
    costs: tuple[Column, ...] = field(converter=as_tuple)
    estimates: Numbers
    baseline: str | None
    differences: Numbers
    rankings: tuple[Ranking, ...] = field(converter=as_tuple)
    pairs: dict[int, tuple[str, int]]
    files: dict[str, Path]
    outcomes: dict[str, Outcome]
    figures: tuple[HeatFigure, ...] = field(converter=as_tuple)
    errors: tuple[str, ...] = field(converter=as_tuple)
    resamples: int
    machines: dict[str, int]
    versions: dict[str, tuple[str, ...]]
    commits: dict[str, int]
    commit: str | None

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width in pixels of each size, in the plan's order."""
        return tuple(dict.fromkeys(group.size for group in self.groups))

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Names of the settings on each axis, in order."""
        found: dict[str, dict[str, None]] = {}
        for group in self.groups:
            for axis, place in group.axes.items():
                found.setdefault(axis, {})[place] = None
        return {axis: tuple(places) for axis, places in found.items()}

    @property
    def numeric_axes(self) -> dict[str, tuple[float, ...]]:
        """Values of the axes with two or more settings whose names are all numbers."""
        found = {axis: tuple(number(place) for place in places) for axis, places in self.axes.items()}
        return {
            axis: tuple(place for place in places if place is not None)
            for axis, places in found.items()
            if len(places) > 1 and None not in places
        }

    def at(self, size: Size) -> tuple[Group, ...]:
        """Return the groups of a size."""
        return tuple(group for group in self.groups if group.size == size)

    def estimate(self, group: Group, column: Column) -> Estimate:
        """Return the estimate of a column for a group; nan with a count of 0 if there is none."""
        return self.estimates.get((group.row, group.size, column.name), Estimate(value=math.nan))

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of finished, missing and failed cells, without heat maps."""
        return (
            sum(len(group.cells) for group in self.groups),
            sum(group.missing for group in self.groups),
            sum(group.failed for group in self.groups),
        )


def number(place: str) -> float | None:
    """Parse the name of an axis' setting as a number; None if it is not one."""
    try:
        return float(place)
    except ValueError:
        return None
