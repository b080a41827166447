"""How far a run has come: all that must be kept to go on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from attrs import define, field

from vitrail.core.engine.nonfinite import NonFiniteSearch
from vitrail.core.method.cost import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Start
    from vitrail.core.engine.independent_ranks import IndependentRanks
    from vitrail.core.engine.rank_comparison import RankComparison
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@define
class RunState:
    """What strategies carry from step to step, and what is checked of the step in work (finite, alike on all ranks)."""

    phase: int = -1
    stage: int = -1
    guidance: list[Any] = field(factory=list)
    masking: Any = None
    mask: Tensor | None = None  # of the whole canvas at the step in work, if the stage's is one
    memory: KeptMaps | None = None
    start: Start | None = None
    base: Tensor | None = None  # mean and deviation of the first size's result
    independent: IndependentRanks | None = None
    nonfinite: NonFiniteSearch = field(factory=NonFiniteSearch)
    comparison: RankComparison | None = None

    def note(self, step: Step, what: str, value: Any) -> None:
        """Note what all ranks must have alike; where each has its own cells alone, there is no such thing."""
        if self.comparison is not None and self.independent is None:
            self.comparison.note(step, what, value)

    def compare(self) -> None:
        """Compare what was noted between ranks; collective. See ``RankComparison.compare``."""
        if self.comparison is not None:
            self.comparison.compare()


@define
class Timings:
    """Seconds of a run on this rank, by what they went into, and what all ranks together asked of the networks."""

    predict_s: float = 0.0
    total_s: float = 0.0
    cost: Cost = field(factory=Cost)

    @property
    def rows(self) -> int:
        """That the network saw."""
        return self.cost.model_calls

    def count(self, batches: Iterable[MicroBatch]) -> None:
        """Add the rows of micro-batches."""
        for rows in batches:
            cells = math.prod(rows.model_input.shape[-2:])
            self.add(Cost(rows={cells: len(rows.views)}))

    def add(self, cost: Cost) -> None:
        """Add what was asked."""
        self.cost = Cost.total([self.cost, cost])


@define(eq=False)
class Sampled:
    """A picture in work.

    Attributes:
        latents: After the last step that was done, Float32[Tensor, "batch channels height width"].
        steps: How many were done.
        prediction: The last, None before the first step.
        state: Of the strategies.
        timings: So far.
        entered: Whether a step was done in this process.
    """

    latents: Tensor
    steps: int = 0
    prediction: Prediction | None = None
    state: RunState = field(factory=RunState)
    timings: Timings = field(factory=Timings)
    entered: bool = False
