"""Costs of pictures as a metric: time, network evaluations and memory, recorded while sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.metric import Column

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

    def gather(self, looked: Tensor, reference: Tensor | None) -> tuple[float, ...]:
        """Return the mean of each column over the cells with a value in it."""
        return tuple(looked.double().nanmean(dim=0).tolist())
