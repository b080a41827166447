"""From an experiment's folders to the features of their pictures, each extracted once and cached in the folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalFeatureExtractor
from vitrail.core.method.metric import FeatureExtractor, Metric, Shown
from vitrail.core.method.returned_measures import columns_of, digest_of_set, look_at, numbers_of, pictures_of
from vitrail.errors import ConfigError, ShapeError
from vitrail.experiments.analysis.feature_cache import FeatureCache
from vitrail.experiments.run.store import PLAN, ExperimentPlan, Folder, Outcome, same_plan
from vitrail.experiments.spec.cells import Cell
from vitrail.experiments.spec.experiment import Experiment
from vitrail.experiments.spec.experiment_file import structure
from vitrail.pictures.picture_files import open_own
from vitrail.sampling.discovery import registered_name

if TYPE_CHECKING:
    from torch import Tensor


class Counter(Protocol):
    """Counts finished items."""

    def step(self) -> None:
        """Count one more item as finished."""


class Listener(Protocol):
    """Receives progress reports."""

    def count(self, name: str, total: int | None) -> AbstractContextManager[Counter]:
        """Begin a count of items of a kind, ``name``, up to ``total`` if that is known, for the ``with`` block."""


Size = tuple[int, int]


@frozen(kw_only=True, eq=False)
class Loaded:
    """One experiment, read from one or more folders.

    Attributes:
        experiment: The specification, including the metrics to compute.
        plan: All of its cells.
        folders: The folders that hold its pictures.
        outcomes: Result of each cell that was run, by address.
        homes: Folder that holds the picture of each finished cell, by address.
    """

    experiment: Experiment
    plan: ExperimentPlan
    folders: tuple[Folder, ...] = field(converter=as_tuple)
    outcomes: dict[str, Outcome]
    homes: dict[str, Folder]

    @property
    def done(self) -> tuple[Cell, ...]:
        """Finished cells, those with a picture, in the plan's order."""
        return tuple(cell for cell in self.plan.cells if cell.address in self.homes)

    def file(self, cell: Cell) -> Path:
        """Return the path of a finished cell's picture."""
        return self.homes[cell.address].path / cell.picture

    def has_failed(self, cell: Cell) -> bool:
        """Return whether the cell was run and ended with an error; otherwise it is finished or was not run."""
        tried = self.outcomes.get(cell.address)
        return cell.address not in self.homes and tried is not None and tried.error is not None


def load(folders: Sequence[Path], experiment: Experiment | None = None) -> Loaded:
    """Read an experiment whose cells may have been sampled in several folders.

    Args:
        folders: One or more folders of the same cells; the first one's plan gives the metrics.
        experiment: Replaces the specification in the plan, e.g. with other metrics.

    Raises:
        ConfigError: If there are no folders, one is not an experiment's, or one is of another experiment.
    """
    if not folders:
        raise ConfigError("a report needs the folder of an experiment")
    homes: dict[str, Folder] = {}
    outcomes: dict[str, Outcome] = {}
    read = [Folder(path) for path in folders]
    plan = same_plan(read)
    for folder in read:
        found = folder.outcomes()
        for cell in plan.cells:
            if cell.address not in homes and cell.address in found:
                outcomes[cell.address] = found[cell.address]
                if folder.is_done(cell, found):
                    homes[cell.address] = folder
    first = experiment or structure(plan.experiment, str(folders[0] / PLAN))
    return Loaded(experiment=first, plan=plan, folders=read, outcomes=outcomes, homes=homes)


@frozen(kw_only=True, eq=False)
class Seen:
    """Features of every extractor.

    Attributes:
        pictures: By the extractor's key and the cell's address, Float32[Tensor, "..."].
        references: By the extractor's key and the size, Float32[Tensor, "references ..."].
    """

    pictures: dict[str, dict[str, Tensor]]
    references: dict[tuple[str, Size], Tensor]

    def of(self, extractor: FeatureExtractor, addresses: Iterable[str]) -> Tensor:
        """Return an extractor's features of some cells' pictures, Float32[Tensor, "pictures ..."].

        Raises:
            ShapeError: If the pictures' features have different shapes.
        """
        key = key_of(extractor)
        return _stacked(key, [self.pictures[key][address] for address in addresses])


def key_of(extractor: FeatureExtractor) -> str:
    """Return the cache key of a feature extractor: its ``repr`` and the digest of its weights, if it has one."""
    digest = OptionalFeatureExtractor.of(extractor).digest
    return f"{extractor!r} with {digest}" if digest else repr(extractor)


def _stacked(extractor: str, seen: list[Tensor]) -> Tensor:
    import torch

    shapes = {tuple(each.shape) for each in seen}
    if len(shapes) > 1:
        raise ShapeError(f"{extractor} must see tensors of one shape in pictures of one size, got {sorted(shapes)}")
    return torch.stack(seen)


def look(loaded: Loaded, listener: Listener) -> Seen:
    """Extract the features of every finished picture and of the reference set at every size, unless they are cached.

    Equal extractors run once. Features are cached beside the pictures every half minute, so a killed report resumes.

    Args:
        loaded: The experiment.
        listener: Receives the progress.

    Raises:
        ConfigError: If a picture or a cache file cannot be read, or the reference set has no pictures of a size.
        ShapeError: If a metric, its extractor or the reference set returns what its contract does not allow, or the
            features of reference pictures of one size have different shapes.
    """
    import torch

    for metric in loaded.experiment.metrics:
        columns_of(_asked("metrics", metric), metric)
    with torch.no_grad():
        return Seen(pictures=_extract_cells(loaded, listener), references=_extract_references(loaded, listener))


def _asked(slot: str, called: object) -> StrategyCall:
    return StrategyCall(slot, called, named=registered_name)


@frozen
class CheckedMetric:
    """A metric whose numbers are checked, see ``numbers_of``."""

    metric: Metric

    def gather(self, features: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the number of every column, see ``Metric.gather``.

        Raises:
            ShapeError: If they are not such numbers.
        """
        return numbers_of(_asked("metrics", self.metric), self.metric, features, reference)


def _extract_cells(loaded: Loaded, listener: Listener) -> dict[str, dict[str, Tensor]]:
    metrics = {key_of(metric.extractor): metric for metric in loaded.experiment.metrics}
    cells = list({cell.address: cell for cell in loaded.done if cell.kind == "picture"}.values())
    kept = {(key, folder): FeatureCache(folder.path, key) for key in metrics for folder in loaded.folders}
    todo = {
        cell.address: [key for key in metrics if cell.address not in kept[key, loaded.homes[cell.address]]]
        for cell in cells
    }
    waiting = [cell for cell in cells if todo[cell.address]]
    try:
        with listener.count("looking at picture", len(waiting)) as meter:
            for cell in waiting:
                shown = shown_of(cell, loaded)
                for key in todo[cell.address]:
                    seen = look_at(_asked("metrics", metrics[key]), metrics[key], shown)
                    kept[key, loaded.homes[cell.address]].add(cell.address, seen)
                meter.step()
    finally:
        for answers in kept.values():
            answers.keep()
    return {
        key: {cell.address: kept[key, loaded.homes[cell.address]][cell.address] for cell in cells} for key in metrics
    }


def shown_of(cell: Cell, loaded: Loaded) -> Shown:
    """Read the picture of a finished cell as the input of a feature extractor.

    Raises:
        ConfigError: If the file cannot be read.
    """
    import numpy as np
    import torch

    pixels = np.array(open_own(loaded.file(cell)), dtype=np.float32) / 255
    outcome = loaded.outcomes[cell.address]
    return Shown(
        picture=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        prompt=cell.run["prompt"],
        native_size=outcome.native_size,
        rows=outcome.rows,
        columns=outcome.columns,
    )


def _extract_references(loaded: Loaded, listener: Listener) -> dict[tuple[str, Size], Tensor]:
    reference = loaded.experiment.reference
    metrics = {key_of(metric.extractor): metric for metric in loaded.experiment.metrics if metric.needs_reference}
    sizes = list(dict.fromkeys(cell.size for cell in loaded.done if cell.kind == "picture"))
    native = max((loaded.outcomes[cell.address].native_size for cell in loaded.done), default=0)
    seen: dict[tuple[str, Size], Tensor] = {}
    for height, width in sizes if reference is not None and metrics else []:
        assert reference is not None
        asked = _asked("references", reference)
        digest = digest_of_set(asked, reference)
        keys = {key: f"{key} at {digest}, {width}x{height}, training size {native}" for key in metrics}
        kept = {key: FeatureCache(loaded.folders[0].path, name) for key, name in keys.items()}
        blind = [key for key in metrics if not kept[key].is_complete]
        if blind:
            pictures = pictures_of(asked, reference, height, width)
            shows = (evolve(shown, native_size=native) for shown in pictures)
            _extract_set(shows, {key: (metrics[key], kept[key]) for key in blind}, f"{width}x{height}", listener)
        for key, answers in kept.items():
            if not answers.names:
                raise ConfigError(f"{reference!r}: has no picture of {width}x{height} to compare with")
            seen[key, (height, width)] = _stacked(key, [answers[name] for name in answers.names])
    return seen


def _extract_set(
    shows: Iterable[Shown], metrics: dict[str, tuple[Metric, FeatureCache]], size: str, listener: Listener
) -> None:
    """Extract the features of a whole reference set and mark the caches as complete."""
    try:
        with listener.count(f"looking at true picture of {size}", None) as meter:
            for number, shown in enumerate(shows):
                for metric, answers in metrics.values():
                    if f"{number:06}" not in answers:
                        answers.add(f"{number:06}", look_at(_asked("metrics", metric), metric, shown))
                meter.step()
    except BaseException:
        for _, answers in metrics.values():
            answers.keep()
        raise
    for _, answers in metrics.values():
        answers.finish()
