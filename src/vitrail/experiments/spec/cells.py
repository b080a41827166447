"""Cells of an experiment: the pictures to sample, in an order that keeps tables of unfinished experiments balanced."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple
from vitrail.core.config.loader import loader_of
from vitrail.core.config.renamed_keys import former_keys
from vitrail.core.config.run_config import PIXELS, RunConfig
from vitrail.core.method.composition import Composition
from vitrail.core.method.registration import path_options
from vitrail.core.schedule.streams import SCHEME
from vitrail.errors import ConfigError, Problems, shortened
from vitrail.experiments.spec.experiment import (
    MOST_CELLS,
    MOST_PAIRS,
    MOST_ROWS,
    TIMES,
    Axis,
    Experiment,
    HeatMap,
    MethodEntry,
    Setting,
)
from vitrail.experiments.spec.experiment_file import prompts_of
from vitrail.pictures.picture_files import open_picture
from vitrail.sampling.discovery import registered_name, registry
from vitrail.sampling.input_digests import content_digest
from vitrail.sampling.methods import load_method
from vitrail.sampling.run_plugins import attached, load_plugins, wrapping

DIGITS = 12  # hexadecimal digits of an address
NAMES = ("method", "model", "model_config", "variant", "revision", "memory")  # run options that no address depends on
TURN = 100_000  # between two seeds of a prompt, so that adding prompts changes no seed
Kind = Literal["picture", "heatmap"]


@frozen(kw_only=True)
class Cell:
    """One picture to sample, or one heat map to draw.

    Attributes:
        address: Digest of what determines its pixels, and of the number of ranks.
        row: Its row in tables: the method's label and the settings on the axes.
        method: The method's label.
        axes: Name of each axis to the name of the setting on it.
        pair: Number of its prompt and seed; cells with equal ones are compared.
        run: Fields of its ``RunConfig``.
        composition: The method as plain tables, with every default.
        ranks: Number of processes that share the work.
        comm: Name of the communication backend.
        plugins: Plugins attached to its run, ``MODULE:OBJECT`` each.
        kind: A sampled picture, or the heat map of a mask source.
        options: Options of a heat map.
    """

    address: str = field(validator=v.instance_of(str))
    row: str = field(validator=v.instance_of(str))
    method: str = field(validator=v.instance_of(str))
    axes: dict[str, str] = field(validator=v.instance_of(dict))
    pair: int = field(validator=v.instance_of(int))
    run: dict[str, Any] = field(validator=v.instance_of(dict))
    composition: dict[str, Any] = field(validator=v.instance_of(dict))
    ranks: int = field(default=1, validator=v.instance_of(int))
    comm: str = "gloo"
    plugins: tuple[str, ...] = field(default=(), converter=as_tuple)
    kind: Kind = "picture"
    options: dict[str, Any] = field(factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.run["height"], self.run["width"]

    @property
    def picture(self) -> str:
        """Path of its picture, relative to the experiment's folder."""
        return f"pictures/{self.address[:2]}/{self.address}.png"

    def config(self) -> RunConfig:
        """Return its run options."""
        return RunConfig(**self.run)


@frozen(kw_only=True)
class Model:
    """Properties of the model that cells depend on.

    Attributes:
        native_size: Side of its training pictures in pixels.
        defaults: The model's default run options.
        fingerprint: Digest of its weights and settings.
    """

    native_size: int
    defaults: Mapping[str, Any]
    fingerprint: str


@frozen(kw_only=True)
class Row:
    """One combination of a method and settings on the axes.

    Attributes:
        name: Name in tables.
        method: The method's label.
        axes: Name of each axis to the name of the setting on it.
        composition: The method, with its overrides.
        run: Run options of this row.
    """

    name: str
    method: str
    axes: dict[str, str]
    composition: Composition
    run: dict[str, Any]


@frozen(kw_only=True)
class Plain:
    """A row at a size as plain data, shared by all of its cells.

    Attributes:
        run: The run options; prompt and seed are set by each cell.
        composition: The method as plain tables.
        addressed: The same without the paths of upscalers' files, which ``besides`` has the contents of.
        besides: Digests of what else determines the pixels.
    """

    run: RunConfig
    composition: dict[str, Any]
    addressed: dict[str, Any]
    besides: tuple[dict[str, str], ...] = field(converter=as_tuple)


def cells_of(experiment: Experiment, model: Model, folder: Path) -> list[Cell]:
    """Return all cells, ordered so that all rows and sizes progress at the same pace.

    Rows with equal options, such as a default and its explicit value, have cells of one address and share pictures.

    Args:
        experiment: The experiment.
        model: The properties of its model.
        folder: Folder of the experiment's file, for a file of prompts.

    Raises:
        ConfigError: Naming every invalid method, override and option, or if there are too many or duplicate cells.
    """
    pairs = pairs_of(experiment, folder)
    sizes = [
        (*_sides(entry.size, model.native_size), min(entry.pictures or len(pairs), len(pairs)))
        for entry in experiment.sizes
    ]
    rows = rows_of(experiment)
    refuse_many(experiment, pairs, rows)
    order = sorted((pair / count, size, pair) for size, (_, _, count) in enumerate(sizes) for pair in range(count))
    problems = Problems()
    cells: list[Cell] = []
    plain: dict[tuple[str, int], Plain] = {}
    for _, size, pair in order:
        for row, ranks in itertools.product(rows, experiment.ranks):
            with problems.collect():
                if (row.name, size) not in plain:
                    plain[row.name, size] = _plain(experiment, model, row, sizes[size][:2])
                cells.append(_cell(experiment, model, row, plain[row.name, size], (pair, *pairs[pair]), ranks))
        problems.tell()
    for heat, pair in itertools.product(experiment.heatmaps, range(len(pairs))):
        if pair < heat.pictures:
            cells.append(_heat_cell(experiment, model, heat, (pair, *pairs[pair])))
    _refuse_twins(cells)
    return cells


def _refuse_twins(cells: Sequence[Cell]) -> None:
    """Refuse two sizes of the same pixels, which are only known with the model's training size."""
    taken = set()
    for cell in cells:
        place = cell.kind, cell.row, cell.size, cell.pair
        if place in taken:
            height, width = cell.size
            raise ConfigError(f"row {cell.row!r} is there twice at {width}x{height} pixels; leave one out")
        taken.add(place)


def pairs_of(experiment: Experiment, folder: Path) -> list[tuple[str, int]]:
    """Return the pairs of a prompt and a seed: first all prompts with their first seed, then with the next.

    Raises:
        ConfigError: If a file of prompts cannot be read, a prompt has a seed twice, or there are too many pairs.
    """
    prompts = prompts_of(experiment, folder)
    count = len(prompts) * (len(experiment.seeds) or experiment.repeats)
    if count > MOST_PAIRS:
        raise ConfigError(f"{count} pairs of a prompt and a seed are more than {MOST_PAIRS}; split the experiment")
    if experiment.seeds:
        pairs = [(prompt, seed) for seed in experiment.seeds for prompt in prompts]
        (prompt, seed), count = Counter(pairs).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"prompt {shortened(prompt)!r} is there twice with seed {seed}; leave one out")
        return pairs
    return [
        (prompt, turn * TURN + number) for turn in range(experiment.repeats) for number, prompt in enumerate(prompts)
    ]


def _sides(size: str, native: int) -> tuple[int, int]:
    """Parse a size to height and width in pixels."""
    if found := PIXELS.fullmatch(size):
        width, height = found[1], found[2] or found[1]
        return int(height), int(width)
    times = TIMES.fullmatch(size)
    assert times is not None
    return tuple(round(float(each) * native) for each in (times[2] or times[1], times[1]))  # type: ignore[return-value]


def rows_of(experiment: Experiment) -> list[Row]:
    """Return every method with every combination of settings on the axes that apply to it; needs no model.

    Raises:
        ConfigError: Naming every invalid method and override, or if there are too many rows.
    """
    problems, rows = Problems(), []
    plans = list(_choices(experiment))
    count = sum(math.prod(map(len, choices)) for _, _, choices in plans)
    if count > MOST_ROWS:
        raise ConfigError(f"methods and axes make {count} rows, more than {MOST_ROWS}; leave some out")
    for entry, label, choices in plans:
        for chosen in itertools.product(*choices):
            with problems.collect():
                rows.append(_row(entry, label, chosen))
    problems.tell()
    return rows


def _choices(experiment: Experiment) -> Iterator[tuple[MethodEntry, str, list[list[tuple[Axis, Setting]]]]]:
    """Yield every method with its label and the settings of each axis that applies to it."""
    for entry, label in zip(experiment.methods, experiment.labels(), strict=True):
        axes = [axis for axis in experiment.axes if not axis.methods or label in axis.methods]
        yield entry, label, [[(axis, each) for each in axis.places() if label not in each.skip] for axis in axes]


def refuse_many(experiment: Experiment, pairs: Sequence[tuple[str, int]], rows: Sequence[Row]) -> None:
    """Refuse an experiment of more than ``MOST_CELLS`` pictures.

    Args:
        experiment: The experiment.
        pairs: Its pairs of a prompt and a seed.
        rows: Its rows.

    Raises:
        ConfigError: Naming the number of pictures.
    """
    pictures = sum(min(entry.pictures or len(pairs), len(pairs)) for entry in experiment.sizes)
    count = pictures * len(rows) * len(experiment.ranks)
    if count > MOST_CELLS:
        raise ConfigError(
            f"{count} pictures are more than {MOST_CELLS}, the most of one experiment; give sizes fewer 'pictures', or "
            "split it"
        )


def _row(entry: MethodEntry, label: str, chosen: tuple[tuple[Axis, Setting], ...]) -> Row:
    assignments = [*entry.set, *(text for _, place in chosen for text in place.set)]
    run = dict(entry.run)
    for _, place in chosen:
        run |= place.run
    name = ", ".join([label, *(f"{axis.name} {place.name}" if axis.values else place.name for axis, place in chosen)])
    return Row(
        name=name,
        method=label,
        axes={axis.name: place.name for axis, place in chosen},
        composition=load_method(entry.method, assignments),
        run=run | {"method": entry.method},
    )


def _plain(experiment: Experiment, model: Model, row: Row, size: tuple[int, int]) -> Plain:
    """A row at a size as plain data."""
    table = {**model.defaults, **experiment.run, **row.run, "model": experiment.model, "prompt": ""}
    loader = loader_of(registry())
    run = loader.structure({**table, "height": size[0], "width": size[1]}, RunConfig, f"row {row.name!r}")
    tables, besides = loader.unstructure(row.composition), _besides(experiment, row)
    addressed = _without_paths(tables, row.composition)
    return Plain(run=run, composition=tables, addressed=addressed, besides=besides)


def _without_paths(tables: dict[str, Any], composition: Composition) -> dict[str, Any]:
    """Return a method's tables without the paths of strategies' files, for whose contents their digests stand.

    Args:
        tables: The method as plain tables.
        composition: The method.
    """
    found, digests = copy.deepcopy(tables), composition.digests(registered_name)
    for place in composition.places():
        if place.path not in digests:
            continue
        table: Any = found
        for part in place.path.split("."):
            table = table[int(part) if part.isdecimal() else part]
        for name in path_options(type(place.strategy)):
            table.pop(name, None)
    return found


def _cell(experiment: Experiment, model: Model, row: Row, plain: Plain, pair: tuple[int, str, int], ranks: int) -> Cell:
    number, prompt, seed = pair
    run, composition = evolve(plain.run, prompt=prompt, seed=seed).as_table(), plain.composition
    return Cell(
        address=_address(run, plain.addressed, model, ranks, experiment.comm, plain.besides),
        row=row.name if len(experiment.ranks) == 1 else f"{row.name}, {ranks} rank{'s' * (ranks > 1)}",
        method=row.method,
        axes=row.axes,
        pair=number,
        run=run,
        composition=composition,
        ranks=ranks,
        comm=experiment.comm,
        plugins=experiment.plugins,
    )


def heat_row(heat: HeatMap) -> Row:
    """A mask source on the whole picture as one view.

    Raises:
        ConfigError: If there is none of its name, or an override is wrong.
    """
    entry = MethodEntry(method="direct", set=(f"stages.0.masking={heat.masking}", *heat.set))
    return _row(entry, heat.label or heat.masking, ())


def _heat_cell(experiment: Experiment, model: Model, heat: HeatMap, pair: tuple[int, str, int]) -> Cell:
    number, prompt, seed = pair
    side, row = model.native_size, heat_row(heat)
    plain = _plain(experiment, model, row, (side, side))
    cell = _cell(evolve(experiment, ranks=(1,)), model, row, plain, (number, prompt, seed), 1)
    address = _digest([cell.address, heat.at])
    return evolve(cell, address=address, kind="heatmap", options={"at": heat.at})


def _besides(experiment: Experiment, row: Row) -> list[dict[str, str]]:
    """Digests of what determines pixels besides plain data: strategies' files, and plugins that wrap hooks."""
    found = (row.composition.digests(registered_name), wrapping(attached(load_plugins(experiment.plugins))))
    return [part for part in found if part]


def _address(
    run: dict[str, Any],
    composition: dict[str, Any],
    model: Model,
    ranks: int,
    comm: str,
    besides: Sequence[dict[str, str]] = (),
) -> str:
    """Digest of what determines the pixels, and of the ranks, since they determine the duration.

    The model is included by its fingerprint, not by its name or path.
    """
    fields = {name: value for name, value in run.items() if name not in NAMES}
    given = run["negative_prompt"]
    fields["negative_prompt"] = {None: "", "": None}.get(given, given)  # swapped, to keep addresses of older versions
    if run["image"] is not None:
        fields["image"] = _image_digest(run["image"])
    if "regions" in run:
        fields["regions"] = [
            each if each["mask"] is None else each | {"mask": _image_digest(each["mask"])} for each in run["regions"]
        ]
    data = [fields, former_keys(composition), model.fingerprint, SCHEME, ranks, comm if ranks > 1 else None, *besides]
    return _digest(data)


@functools.cache
def _image_digest(path: str) -> str:
    """Digest of a picture's pixels, independent of its path."""
    return content_digest(open_picture(path))


def _digest(data: list[Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:DIGITS]
