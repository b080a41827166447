"""An experiment as data: the cross product of prompts, seeds, methods, sizes and axes, and its metrics."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.comm.environment import MOST_RANKS
from vitrail.core.config.fields import as_tuple
from vitrail.core.config.run_config import LARGEST_SEED, MAX_SIZE, MIN_SIZE, PIXELS, RunConfig
from vitrail.core.method.metric import Column, Metric, References
from vitrail.errors import nearest, shortened
from vitrail.sampling.relative_paths import PLACE

if TYPE_CHECKING:
    from torch import Tensor

SECONDS, CALLS, CRITICAL, PREDICTED, MEMORY = "seconds", "calls", "critical calls", "predicted calls", "MiB"


@frozen(kw_only=True)
class Costs:
    """Mean costs of cells, from their outcomes instead of from pictures."""

    needs_reference: ClassVar[bool] = False
    columns: ClassVar[tuple[Column, ...]] = (
        Column(name=SECONDS, better="down", lowest=0.0),
        Column(name=CALLS, better="down", decimals=0, lowest=0.0),
        Column(name=CRITICAL, better="down", decimals=0, lowest=0.0),
        Column(name=PREDICTED, better="down", decimals=0, lowest=0.0),
        Column(name=MEMORY, better="down", decimals=0, lowest=0.0),
    )

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the mean of each column over the cells with a value in it."""
        return tuple(features.double().nanmean(dim=0).tolist())


OF_CELLS = frozenset({"prompt", "seed", "height", "width", "method", "model", "num_images"})  # not allowed in ``run``
OF_MODEL = frozenset({"dtype", "variant", "revision", "model_config"})  # fixed, since one model is loaded for all rows
TIMES = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,9})?)x(?:([0-9]{1,4}(?:\.[0-9]{1,9})?)x)?")
MOST_PAIRS, MOST_ROWS, MOST_CELLS = 100_000, 1_000, 100_000  # limits of an experiment
MOST_RESAMPLES = 100_000


def _run_fields(instance: object, attribute: Any, table: dict[str, Any]) -> None:
    from attrs import fields_dict

    for name in table:
        if name in OF_CELLS:
            raise ValueError(f"{name!r} is said elsewhere in an experiment, not in a table of run options")
        if name not in fields_dict(RunConfig):
            known = set(fields_dict(RunConfig)) - OF_CELLS
            raise ValueError(f"a run has no key {shortened(str(name), 60)!r}{nearest(str(name), known)}")


def _row_fields(instance: object, attribute: Any, table: dict[str, Any]) -> None:
    _run_fields(instance, attribute, table)
    if wrong := sorted(OF_MODEL & set(table)):
        raise ValueError(
            f"{wrong[0]!r} is of the model, which is loaded once for all rows; put it in the experiment's 'run', and "
            "compare experiments"
        )


def _size(instance: object, attribute: Any, size: str) -> None:
    if not (PIXELS.fullmatch(size) or TIMES.fullmatch(size)):
        raise ValueError(
            f"{shortened(size, 60)!r} is no size; write 512 or 768x512 for pixels (width x height), 2x or 2x1x for "
            "times the size that the model was trained at"
        )
    found = PIXELS.fullmatch(size)
    if found and not all(MIN_SIZE <= int(side) <= MAX_SIZE for side in found.groups() if side):
        raise ValueError(f"{size!r}: a side has {MIN_SIZE} to {MAX_SIZE} pixels; write 2x for twice the training size")


def _seeds(instance: object, attribute: Any, seeds: tuple[int, ...]) -> None:
    wrong = [seed for seed in seeds if not 0 <= seed <= LARGEST_SEED]
    if wrong:
        raise ValueError(f"'seeds' are numbers from 0 to {LARGEST_SEED}: {wrong[0]}")


def _ranks(instance: object, attribute: Any, ranks: tuple[int, ...]) -> None:
    if not ranks or not all(1 <= count <= MOST_RANKS for count in ranks):
        raise ValueError(f"'ranks' are one or more numbers of processes from 1 to {MOST_RANKS}; got {list(ranks)}")


def _up_to(most: int, least: int = 0) -> Any:
    return v.and_(v.ge(least), v.le(most))


Table = dict[str, Any]
run_table: Any = field(factory=dict, validator=_run_fields)
row_table: Any = field(factory=dict, validator=_row_fields)


@frozen(kw_only=True)
class MethodEntry:
    """A method of the grid: a registered name or a file, with optional overrides."""

    noun: ClassVar[str] = "a method of the grid"
    method: str  # a registered method or a TOML or YAML file
    label: str = ""  # name in tables; the method's name if empty
    set: tuple[str, ...] = field(default=(), converter=as_tuple)  # overrides, e.g. stages.0.masking=none
    run: dict[str, Any] = row_table  # run options of this method only


@frozen(kw_only=True)
class SizeEntry:
    """A size of the grid, in pixels or relative to the training size."""

    noun: ClassVar[str] = "a size"
    size: str = field(validator=_size)  # 512 or 768x512 (width x height), or 2x for twice the training size
    pictures: int | None = field(
        default=None, validator=v.optional(v.ge(1))
    )  # number of pairs, from the first; default all


@frozen(kw_only=True)
class Setting:
    """One setting on an axis."""

    noun: ClassVar[str] = "a setting"
    name: str  # name in tables and plots
    set: tuple[str, ...] = field(default=(), converter=as_tuple)  # overrides of the method
    run: dict[str, Any] = row_table  # run options
    skip: tuple[str, ...] = field(default=(), converter=as_tuple)  # labels of methods without this setting


@frozen(kw_only=True)
class Axis:
    """A quantity that is varied: values inserted into an override or a run option, or named settings."""

    noun: ClassVar[str] = "an axis"
    name: str  # name in tables and plots
    values: tuple[Any, ...] = field(default=(), converter=as_tuple)  # values inserted into ``set`` and ``option``
    set: tuple[str, ...] = field(default=(), converter=as_tuple)  # overrides that contain {value}
    option: str | None = None  # a run option that takes the value
    settings: tuple[Setting, ...] = field(default=(), converter=as_tuple)  # explicit settings instead of values
    methods: tuple[str, ...] = field(
        default=(), converter=as_tuple
    )  # labels of the methods it applies to; all if empty

    def __attrs_post_init__(self) -> None:
        if bool(self.values) == bool(self.settings):
            raise ValueError(f"axis {self.name!r} needs either 'values' or 'settings'")
        if self.values and not self.set and self.option is None:
            raise ValueError(f"axis {self.name!r} does nothing with its values; give 'set' with {PLACE}, or 'option'")
        if any(PLACE not in assignment for assignment in self.set):
            raise ValueError(f"axis {self.name!r}: every assignment in 'set' must have {PLACE} in it")
        if self.option is not None:
            _row_fields(self, None, {self.option: None})
        if len({place.name for place in self.places()}) < len(self.places()):
            raise ValueError(f"axis {self.name!r} has a {'value' if self.values else 'setting'} twice")

    def places(self) -> tuple[Setting, ...]:
        """Return its settings; for plain values one setting per value."""
        return self.settings or tuple(self._setting(value) for value in self.values)

    def _setting(self, value: Any) -> Setting:
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assignments = tuple(assignment.replace(PLACE, shown) for assignment in self.set)
        return Setting(name=shown, set=assignments, run={} if self.option is None else {self.option: value})


@frozen(kw_only=True)
class HeatMap:
    """Heat maps of a mask source over the steps of a picture of the training size, one figure per prompt and seed."""

    noun: ClassVar[str] = "a heat map"
    masking: str  # a registered mask source
    label: str = ""  # name in the report; the mask source's name if empty
    set: tuple[str, ...] = field(default=(), converter=as_tuple)  # overrides, e.g. stages.0.masking.layers=[0]
    at: str = "0.1,0.25,0.5,0.75,1.0"  # shares of the steps after which maps are recorded
    pictures: int = field(default=4, validator=v.ge(1))  # number of pairs, from the first


@frozen(kw_only=True)
class Experiment:
    """Specification of an experiment; its cells are prompts x seeds x methods x axes x sizes x ranks."""

    noun: ClassVar[str] = "an experiment"
    title: str = ""  # title of the report
    source: str = ""  # the table or figure of a paper that it corresponds to
    model: str = "demo"  # a registered model, a diffusers folder, a .safetensors file or a hub id
    prompts: tuple[str, ...] = field(default=(), converter=as_tuple)  # the prompts as texts
    prompts_file: str | None = None  # or a text file with one prompt per line; lines that begin with # are skipped
    scenes: int = field(default=0, validator=_up_to(MOST_PAIRS))  # or a number of the demo model's own scenes
    repeats: int = field(
        default=1, validator=_up_to(MOST_PAIRS, 1)
    )  # pictures per prompt, each with a seed that no other pair has
    seeds: tuple[int, ...] = field(default=(), converter=as_tuple, validator=_seeds)  # or these seeds for every prompt
    sizes: tuple[SizeEntry, ...] = field(default=(), converter=as_tuple)  # one or more sizes
    methods: tuple[MethodEntry, ...] = field(default=(), converter=as_tuple)  # one or more methods
    axes: tuple[Axis, ...] = field(default=(), converter=as_tuple)  # further quantities that are varied
    ranks: tuple[int, ...] = field(
        default=(1,), converter=as_tuple, validator=_ranks
    )  # numbers of processes per picture; several numbers measure scaling
    comm: str = "gloo"  # a registered communication backend
    plugins: tuple[str, ...] = field(default=(), converter=as_tuple)  # MODULE:OBJECT each, attached to every run
    run: dict[str, Any] = run_table  # options of every run, e.g. num_inference_steps
    heatmaps: tuple[HeatMap, ...] = field(default=(), converter=as_tuple)  # heat maps of mask sources
    metrics: tuple[Metric, ...] = field(default=(), converter=as_tuple)  # metrics of the pictures
    reference: References | None = None  # reference set that some metrics compare with
    resamples: int = field(default=1000, validator=_up_to(MOST_RESAMPLES))  # bootstrap resamples; 0 gives no intervals

    def __attrs_post_init__(self) -> None:
        given = [bool(self.prompts), self.prompts_file is not None, self.scenes > 0]
        if sum(given) != 1:
            raise ValueError("give exactly one of 'prompts', 'prompts_file' and 'scenes'")
        if not (self.methods and self.sizes) and not self.heatmaps:
            raise ValueError("an experiment needs 'methods' and 'sizes', or 'heatmaps'")
        if self.seeds and self.repeats != 1:
            raise ValueError("'repeats' gives seeds itself; leave it out where 'seeds' are given")
        self._refuse_twins()
        for axis in self.axes:
            unknown = {*axis.methods, *(name for place in axis.places() for name in place.skip)} - set(self.labels())
            if unknown:
                raise ValueError(f"axis {axis.name!r} is for {sorted(unknown)[0]!r}, which is no method's label")
        if any(metric.needs_reference for metric in self.metrics) and self.reference is None:
            raise ValueError("a metric compares with true pictures; say which by 'reference'")

    def _refuse_twins(self) -> None:
        """Refuse duplicate names of methods, axes, heat maps, sizes, ranks and columns, which tables use as keys."""
        own, out = "give each a 'label' or name of its own", "leave one out"
        columns = [*(column for metric in self.metrics for column in metric.columns), *Costs.columns]
        for what, names, cure in (
            ("method", self.labels(), own),
            ("axis", [axis.name for axis in self.axes], own),
            ("heat map", [heat.label or heat.masking for heat in self.heatmaps], own),
            ("size", [entry.size for entry in self.sizes], out),
            ("number of ranks", list(map(str, self.ranks)), out),
            ("column", [column.name for column in columns], "leave one metric out"),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} {shortened(twice[0], 60)!r} is there twice; {cure}")

    def labels(self) -> list[str]:
        """Return the label of each method: its own, or the stem of its name or file."""
        from pathlib import Path

        return [entry.label or Path(entry.method).stem for entry in self.methods]
