"""What an experiment found, as data: every number with its interval, differences, rankings, and where it is from."""

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
    """The pictures of one row at one size.

    Attributes:
        row: Its name in tables.
        method: The method's label.
        axes: Name of each axis to the name of the place on it.
        ranks: Processes that shared the work.
        size: Height and width in pixels.
        cells: Done ones, by pair.
        planned: Cells that there were to be.
        failed: Cells that were tried in vain; the rest of those that are not done is missing.
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
        """The row, however many ranks shared its work."""
        return self.row.removesuffix(f", {self.ranks} rank{'s' * (self.ranks > 1)}")

    @property
    def missing(self) -> int:
        """Cells that nobody has tried, or whose picture is gone."""
        return self.planned - self.failed - len(self.cells)


@frozen(kw_only=True)
class HeatFigure:
    """A figure of a mask source.

    Attributes:
        label: Of the mask source.
        prompt: What it looked at.
        seed: Of the picture.
        file: The figure, or None if it is not done.
    """

    label: str
    prompt: str
    seed: int
    file: Path | None


Numbers = dict[tuple[str, Size, str], Estimate]  # by row, size and column's name


@frozen(kw_only=True, eq=False)
class Results:
    """Everything that tables, plots and pages are made of.

    Attributes:
        title: What the experiment shows.
        source: The table or figure that it corresponds to.
        command: What was typed.
        groups: Rows at sizes, in the plan's order; some may have no picture.
        columns: Of the metrics.
        costs: Of what was noted while sampling; those that say something.
        estimates: Every number.
        baseline: The row that ``differences`` compares with.
        differences: Each row less the baseline, over the pairs that both have.
        rankings: Of every column that has a better direction, at every size with two rows or more.
        pairs: Prompt and seed of every pair.
        files: Pictures of done cells, by address.
        outcomes: Lines of done cells, by address.
        figures: Of mask sources.
        errors: The first different errors of failed cells, each with the first cell that met it.
        resamples: Of the bootstrap.
        machines: Where cells were made, with how many of them.
        versions: Of Vitrail and the libraries that shape pixels.
        commits: Of the Vitrail that sampled, with how many cells.
        commit: Of the Vitrail that reports, if it is a checkout.
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
        """In order."""
        return tuple(dict.fromkeys(group.size for group in self.groups))

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """Places on every axis, in order."""
        found: dict[str, dict[str, None]] = {}
        for group in self.groups:
            for axis, place in group.axes.items():
                found.setdefault(axis, {})[place] = None
        return {axis: tuple(places) for axis, places in found.items()}

    @property
    def numeric_axes(self) -> dict[str, tuple[float, ...]]:
        """Axes of which every place is a number, and that have two or more."""
        found = {axis: tuple(number(place) for place in places) for axis, places in self.axes.items()}
        return {
            axis: tuple(place for place in places if place is not None)
            for axis, places in found.items()
            if len(places) > 1 and None not in places
        }

    def at(self, size: Size) -> tuple[Group, ...]:
        """Rows of a size."""
        return tuple(group for group in self.groups if group.size == size)

    def estimate(self, group: Group, column: Column) -> Estimate:
        """A number of a row at a size; nan of no pictures if there are none."""
        return self.estimates.get((group.row, group.size, column.name), Estimate(value=math.nan))

    def counts(self) -> tuple[int, int, int]:
        """Cells that are done, missing and failed, those of figures left out."""
        return (
            sum(len(group.cells) for group in self.groups),
            sum(group.missing for group in self.groups),
            sum(group.failed for group in self.groups),
        )


def number(place: str) -> float | None:
    """A place on an axis as a number, None if it is none."""
    try:
        return float(place)
    except ValueError:
        return None
