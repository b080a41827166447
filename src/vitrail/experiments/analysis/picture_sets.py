"""The pictures that a column has a number of, and samples of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrail.core.method.metric import Column
from vitrail.experiments.analysis.measurement import Loaded, Seen, Size, key_of
from vitrail.experiments.analysis.resampling import FEWEST, Drawing
from vitrail.experiments.analysis.results import Group
from vitrail.experiments.analysis.statistics import Sample, by_itself, sample
from vitrail.experiments.spec.experiment import Costs

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.experiments.run.store import Outcome

Pairs = tuple[int, ...]


class Sets:
    """Samples of metrics over chosen pairs of a row, each made once; costs are one more metric, the last.

    Args:
        loaded: The experiment.
        seen: What eyes saw in its pictures.
    """

    def __init__(self, loaded: Loaded, seen: Seen):
        self.metrics: list[Any] = [*loaded.experiment.metrics, Costs()]
        self._loaded, self._seen = loaded, seen
        self._known: dict[tuple[str, Size, int, Pairs], Sample] = {}

    def columns(self, number: int) -> tuple[Column, ...]:
        """Of a metric."""
        found: tuple[Column, ...] = tuple(self.metrics[number].columns)
        return found

    def pairs(self, group: Group, number: int) -> tuple[Pairs, ...]:
        """For each column of a metric, the pairs whose picture tells it anything.

        A column of sets, which has no number of any single picture, is told by all but those that show its eye nothing.
        """
        columns = len(self.columns(number))
        if not group.cells:
            return ((),) * columns
        features = self._features(group, number, tuple(group.cells))
        known = ~by_itself(self.metrics[number], features, self._reference(group, number)).isnan()
        sighted = ~features.isnan().reshape(len(features), -1).all(dim=1)
        masks = [(sighted & known[:, i] if known[:, i].any() else sighted).tolist() for i in range(columns)]
        return tuple(tuple(pair for pair, has in zip(group.cells, mask, strict=True) if has) for mask in masks)

    def sample(self, group: Group, number: int, pairs: Pairs) -> Sample | None:
        """A metric over some pairs; None of none."""
        key = (group.row, group.size, number, pairs)
        if key not in self._known and pairs:
            features, reference = self._features(group, number, pairs), self._reference(group, number)
            drawing = Drawing([group.cells[pair].run["prompt"] for pair in pairs])
            resamples = self._loaded.experiment.resamples
            self._known[key] = sample(self.metrics[number], features, reference, resamples, drawing)
        return self._known.get(key)

    def is_cost(self, number: int) -> bool:
        """Whether a metric is that of costs."""
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
    """Pairs that all have, in order; none of none."""
    return tuple(sorted(set(pairs[0]).intersection(*pairs[1:]))) if pairs else ()


def rankable(pairs: dict[str, Pairs]) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """Rows that have enough pairs in common to be ranked by them, and rows that are left out.

    Enough are half of what the fullest row has, and three. As long as there are fewer, the row goes out without which
    the others have most in common; the later one if there are several.

    Args:
        pairs: By row.
    """
    kept = {row: each for row, each in pairs.items() if each}
    enough = max([FEWEST, *(-(-len(each) // 2) for each in kept.values())])
    while len(kept) > 2 and len(common(list(kept.values()))) < enough:
        without = {row: common([each for other, each in kept.items() if other != row]) for row in kept}
        del kept[max(reversed(without), key=lambda row: len(without[row]))]
    return kept, {row: each for row, each in pairs.items() if each and row not in kept}


def costs_of(outcome: Outcome) -> Tensor:
    """The columns of ``Costs`` of one cell, Float64[Tensor, "5"]; memory is nan if nobody looked."""
    import torch

    memory = math.nan if outcome.peak_bytes is None else outcome.peak_bytes / 2**20
    calls = (outcome.model_calls, outcome.critical_calls, outcome.predicted_calls)
    return torch.tensor([outcome.seconds, *map(float, calls), memory], dtype=torch.float64, device="cpu")
