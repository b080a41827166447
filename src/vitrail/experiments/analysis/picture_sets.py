"""The pictures with a value in a column, and bootstrap samples over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.measurement import CheckedMetric, Loaded, Seen, Size, key_of
from vitrail.experiments.analysis.resampling import FEWEST, Drawing
from vitrail.experiments.analysis.results import Group
from vitrail.experiments.analysis.statistics import Sample, by_itself, sample
from vitrail.experiments.spec.experiment import Costs

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.experiments.run.store import Outcome

Pairs = tuple[int, ...]


class Sets:
    """Cached samples of metrics over pairs of a row; the last metric is the costs.

    Args:
        loaded: The experiment.
        seen: The features of its pictures and of its reference set.
    """

    def __init__(self, loaded: Loaded, seen: Seen):
        self.metrics: list[Any] = [*loaded.experiment.metrics, Costs()]
        self._loaded, self._seen = loaded, seen
        self._known: dict[tuple[str, Size, int, Pairs], Sample] = {}

    def columns(self, number: int) -> tuple[Column, ...]:
        """Return the columns of a metric, by its number in ``metrics``."""
        found: tuple[Column, ...] = tuple(self.metrics[number].columns)
        return found

    def pairs(self, group: Group, number: int) -> tuple[Pairs, ...]:
        """Return for each column of a metric the pairs with a value in this column.

        A metric of sets has no value of a single picture; its columns use all pairs whose features are not all nan.

        Args:
            group: Row and size.
            number: Of the metric in ``metrics``.
        """
        columns = len(self.columns(number))
        if not group.cells:
            return ((),) * columns
        features = self._features(group, number, tuple(group.cells))
        known = ~by_itself(CheckedMetric(self.metrics[number]), features, self._reference(group, number)).isnan()
        sighted = ~features.isnan().reshape(len(features), -1).all(dim=1)
        masks = [(sighted & known[:, i] if known[:, i].any() else sighted).tolist() for i in range(columns)]
        return tuple(tuple(pair for pair, has in zip(group.cells, mask, strict=True) if has) for mask in masks)

    def sample(self, group: Group, number: int, pairs: Pairs) -> Sample | None:
        """Compute a metric over some pairs with its bootstrap, once; None if there are no pairs.

        Args:
            group: Row and size.
            number: Of the metric in ``metrics``.
            pairs: Pairs of a prompt and a seed, by number.

        Raises:
            ConfigError: If the metric lacks its reference set or an optional dependency.
            ShapeError: If the pictures' features have different shapes.
        """
        key = (group.row, group.size, number, pairs)
        if key not in self._known and pairs:
            features, reference = self._features(group, number, pairs), self._reference(group, number)
            drawing = Drawing([group.cells[pair].run["prompt"] for pair in pairs])
            resamples = self._loaded.experiment.resamples
            self._known[key] = sample(CheckedMetric(self.metrics[number]), features, reference, resamples, drawing)
        return self._known.get(key)

    def is_cost(self, number: int) -> bool:
        """Return whether a metric is that of costs, the last one."""
        return number == len(self.metrics) - 1

    def _features(self, group: Group, number: int, pairs: Pairs) -> Tensor:
        import torch

        addresses = [group.cells[pair].address for pair in pairs]
        if self.is_cost(number):
            return torch.stack([costs_of(self._loaded.outcomes[address]) for address in addresses])
        return self._seen.of(self.metrics[number].extractor, addresses)

    def _reference(self, group: Group, number: int) -> Tensor | None:
        metric = self.metrics[number]
        if not metric.needs_reference:
            return None
        return self._seen.references[key_of(metric.extractor), group.size]


def common(pairs: Sequence[Pairs]) -> Pairs:
    """Return the pairs that are in all of the sets, sorted; () if there are no sets."""
    return tuple(sorted(set(pairs[0]).intersection(*pairs[1:]))) if pairs else ()


def rankable(pairs: dict[str, Pairs]) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """Split the rows into those with enough pairs in common to be ranked, and those that are left out.

    Enough is half of the pairs of the row that has most, and at least three. While there are fewer, the row is removed
    whose removal leaves the most common pairs; of several such rows the last one. Two rows are never removed.

    Args:
        pairs: Pairs with a value, by row.

    Returns:
        The pairs of the rows to rank, and the pairs of the rows left out; rows without pairs are in neither.
    """
    kept = {row: each for row, each in pairs.items() if each}
    enough = max([FEWEST, *(-(-len(each) // 2) for each in kept.values())])
    while len(kept) > 2 and len(common(list(kept.values()))) < enough:
        without = {row: common([each for other, each in kept.items() if other != row]) for row in kept}
        del kept[max(reversed(without), key=lambda row: len(without[row]))]
    return kept, {row: each for row, each in pairs.items() if each and row not in kept}


def costs_of(outcome: Outcome) -> Tensor:
    """Return the columns of ``Costs`` for one cell, Float64[Tensor, "5"]; memory in MiB, nan if not measured."""
    import torch

    memory = math.nan if outcome.peak_bytes is None else outcome.peak_bytes / 2**20
    calls = (outcome.model_calls, outcome.critical_calls, outcome.predicted_calls)
    return torch.tensor([outcome.seconds, *map(float, calls), memory], dtype=torch.float64, device="cpu")
