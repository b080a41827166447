"""From an experiment to its cells: what is sampled, in an order that keeps half-done tables balanced."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import evolve, field, frozen

from vitrail.core.composition import Composition
from vitrail.core.config import Loader
from vitrail.core.fields import as_tuple
from vitrail.core.run_config import RunConfig
from vitrail.core.streams import SCHEME
from vitrail.discovery import registry
from vitrail.errors import Problems
from vitrail.experiments.experiment import PIXELS, TIMES, Axis, Experiment, HeatMap, MethodEntry, Setting
from vitrail.experiments.prompts import prompts_of
from vitrail.methods import load_method

DIGITS = 12
TURN = 100_000  # from a prompt's seed to its next one, so that further prompts change no seed
Kind = Literal["picture", "heatmap"]


@frozen(kw_only=True)
class Cell:
    """One picture of the grid.

    Attributes:
        address: A digest of what determines its pixels, and of how many ranks share the work.
        row: Its row in tables: the method's label, and where it is on the axes.
        method: The method's label.
        axes: Name of each axis to the name of the place on it.
        pair: Number of its prompt and seed; cells with equal ones are compared.
        run: Fields of its ``RunConfig``.
        composition: The method as plain tables, every default spelt out.
        ranks: Processes that share the work.
        comm: How they talk.
        kind: A sampled picture, or the figure of a mask source.
        options: Of a heat map.
    """

    address: str
    row: str
    method: str
    axes: dict[str, str]
    pair: int
    run: dict[str, Any]
    composition: dict[str, Any]
    ranks: int = 1
    comm: str = "gloo"
    kind: Kind = "picture"
    options: dict[str, Any] = field(factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.run["height"], self.run["width"]

    @property
    def picture(self) -> str:
        """Where its picture lies in the experiment's folder."""
        return f"pictures/{self.address[:2]}/{self.address}.png"

    def config(self) -> RunConfig:
        """Its run."""
        return RunConfig(**self.run)


@frozen(kw_only=True)
class Model:
    """What a grid must know of its model.

    Attributes:
        native_size: Pixels: the side of its training pictures.
        defaults: Fields of a run that suit it.
        fingerprint: Stands for its weights.
    """

    native_size: int
    defaults: Mapping[str, Any]
    fingerprint: str


@frozen(kw_only=True)
class _Row:
    """One combination of a method and places on the axes."""

    name: str
    method: str
    axes: dict[str, str]
    composition: Composition
    run: dict[str, Any]
    places: tuple[Setting, ...] = field(converter=as_tuple, default=())


def cells_of(experiment: Experiment, model: Model, folder: Path) -> list[Cell]:
    """Every cell: all rows and sizes grow at the same pace, so that a table made early is balanced.

    Rows that mean the same, such as a default and its value spelt out, have cells of one address and share pictures.

    Args:
        experiment: What to do.
        model: What its model is.
        folder: Where its file lies, for a file of prompts.

    Raises:
        ConfigError: Naming every method, override and option that is wrong.
    """
    pairs = _pairs(experiment, folder)
    sizes = [
        (*_sides(entry.size, model.native_size), min(entry.pictures or len(pairs), len(pairs)))
        for entry in experiment.sizes
    ]
    rows = _rows(experiment)
    order = sorted((pair / count, size, pair) for size, (_, _, count) in enumerate(sizes) for pair in range(count))
    problems = Problems()
    cells: list[Cell] = []
    for _, size, pair in order:
        height, width, _ = sizes[size]
        for row, ranks in itertools.product(rows, experiment.ranks):
            with problems.collect():
                cells.append(_cell(experiment, model, row, (height, width), (pair, *pairs[pair]), ranks))
        problems.tell()
    for heat, pair in itertools.product(experiment.heatmaps, range(len(pairs))):
        if pair < heat.pictures:
            cells.append(_heat_cell(experiment, model, heat, (pair, *pairs[pair])))
    return cells


def _pairs(experiment: Experiment, folder: Path) -> list[tuple[str, int]]:
    """Prompts with seeds: all prompts with their first seed come first."""
    prompts = prompts_of(experiment, folder)
    if experiment.seeds:
        return [(prompt, seed) for seed in experiment.seeds for prompt in prompts]
    return [
        (prompt, turn * TURN + number)
        for turn in range(experiment.repeats)
        for number, prompt in enumerate(prompts)
    ]


def _sides(size: str, native: int) -> tuple[int, int]:
    """Height and width in pixels of a size as written."""
    if found := PIXELS.fullmatch(size):
        width, height = found[1], found[2] or found[1]
        return int(height), int(width)
    times = TIMES.fullmatch(size)
    assert times is not None
    return tuple(round(float(each) * native) for each in (times[2] or times[1], times[1]))  # type: ignore[return-value]


def _rows(experiment: Experiment) -> list[_Row]:
    """Every method with every combination of places on the axes that are for it."""
    problems, rows = Problems(), []
    for entry, label in zip(experiment.methods, experiment.labels(), strict=True):
        axes = [axis for axis in experiment.axes if not axis.methods or label in axis.methods]
        choices = [[(axis, place) for place in axis.places() if label not in place.skip] for axis in axes]
        for chosen in itertools.product(*choices):
            with problems.collect():
                rows.append(_row(entry, label, chosen))
    problems.tell()
    return rows


def _row(entry: MethodEntry, label: str, chosen: tuple[tuple[Axis, Setting], ...]) -> _Row:
    assignments = [*entry.set, *(text for _, place in chosen for text in place.set)]
    run = dict(entry.run)
    for _, place in chosen:
        run |= place.run
    name = ", ".join([label, *(f"{axis.name} {place.name}" if axis.values else place.name for axis, place in chosen)])
    return _Row(
        name=name,
        method=label,
        axes={axis.name: place.name for axis, place in chosen},
        composition=load_method(entry.method, assignments),
        run=run | {"method": entry.method},
    )


def _cell(
    experiment: Experiment,
    model: Model,
    row: _Row,
    size: tuple[int, int],
    pair: tuple[int, str, int],
    ranks: int,
) -> Cell:
    number, prompt, seed = pair
    table = {
        **model.defaults,
        **experiment.run,
        **row.run,
        "model": experiment.model,
        "prompt": prompt,
        "seed": seed,
        "height": size[0],
        "width": size[1],
    }
    loader = Loader(registry())
    run = attrs.asdict(loader.structure(table, RunConfig, f"row {row.name!r}"))
    composition = loader.unstructure(row.composition)
    return Cell(
        address=_address(run, composition, model, ranks),
        row=row.name if len(experiment.ranks) == 1 else f"{row.name}, {ranks} rank{'s' * (ranks > 1)}",
        method=row.method,
        axes=row.axes,
        pair=number,
        run=run,
        composition=composition,
        ranks=ranks,
        comm=experiment.comm,
    )


def _heat_cell(experiment: Experiment, model: Model, heat: HeatMap, pair: tuple[int, str, int]) -> Cell:
    number, prompt, seed = pair
    side, label = model.native_size, heat.label or heat.masking
    entry = MethodEntry(method="direct", set=(f"stages.0.masking={heat.masking}", *heat.set))
    row = _row(entry, label, ())
    cell = _cell(evolve(experiment, ranks=(1,)), model, row, (side, side), (number, prompt, seed), 1)
    address = _digest([cell.address, heat.at])
    return evolve(cell, address=address, row=label, kind="heatmap", options={"at": heat.at})


def _address(run: dict[str, Any], composition: dict[str, Any], model: Model, ranks: int) -> str:
    """A digest of what determines the pixels; what a method or a model's folder is called does not."""
    fields = {name: value for name, value in run.items() if name not in ("method", "model", "memory")}
    data = [fields, composition, model.fingerprint, SCHEME, ranks]
    return _digest(data)


def _digest(data: list[Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:DIGITS]
