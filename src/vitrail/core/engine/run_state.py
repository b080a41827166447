"""Resumable state of a run: latents, last prediction, state of the strategies, timings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from vitrail.core.engine.nonfinite import NonFiniteSearch
from vitrail.core.method.cost import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Start
    from vitrail.core.engine.independent_ranks import IndependentRanks
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.rank_comparison import RankComparison
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@define
class RunState:
    """State that strategies carry from step to step, and the relay, checks and records of the current step."""

    phase: int = -1
    stage: int = -1
    guidance: list[object] = field(factory=list)
    masking: object = None
    mask: Tensor | None = None  # mask of the whole canvas at the current step, if the stage's covers it
    memory: KeptMaps | None = None
    start: Start | None = None
    base: Tensor | None = None  # mean and deviation of the first size's result
    independent: IndependentRanks | None = None
    nonfinite: NonFiniteSearch = field(factory=NonFiniteSearch)
    comparison: RankComparison | None = None

    def note(self, step: Step, what: str, value: object) -> None:
        """Record a result that must be equal on all ranks; ignored while each rank has only its own cells valid.

        Args:
            step: Position of the run.
            what: Origin of the result for the message.
            value: A tensor, or plain data that ``repr`` distinguishes.
        """
        if self.comparison is not None and self.independent is None:
            self.comparison.note(step, what, value)

    def note_digest(self, step: Step, what: str, digest: Tensor) -> None:
        """As ``note``, for the digest of a tensor, Int64[Tensor, ""]."""
        if self.comparison is not None:
            self.comparison.note_digest(step, what, digest)

    def compare(self, before: Step | None = None) -> None:
        """Compare the recorded results between ranks; collective. See ``RankComparison.compare``."""
        if self.comparison is not None:
            self.comparison.compare(before)


@define
class Timings:
    """Seconds spent by this rank, and network and VAE calls of all ranks together."""

    predict_s: float = 0.0
    total_s: float = 0.0
    cost: Cost = field(factory=Cost)

    @property
    def rows(self) -> int:
        """Number of rows that the networks computed."""
        return self.cost.model_calls

    def count(self, batches: Sequence[MicroBatch], plan: RunPlan, step: Step) -> None:
        """Add the rows of micro-batches, and those that rectifications have computed beside them.

        Args:
            batches: The micro-batches.
            plan: What the run does.
            step: Step at which they are computed.
        """
        for rows in batches:
            cells = math.prod(rows.model_input.shape[-2:])
            beside = plan.cost_beside(step, [(branch, cells, 1) for branch in rows.branches])
            self.add(Cost.total([Cost(rows={cells: len(rows.views)}), beside]))

    def add(self, cost: Cost) -> None:
        """Add a cost."""
        self.cost = Cost.total([self.cost, cost])


@define(eq=False)
class Sampled:
    """State of an unfinished picture.

    Attributes:
        latents: Latents after the last step done, Float32[Tensor, "batch channels height width"].
        steps: Number of steps done, skipped ones included.
        prediction: Last prediction of the canvas; None before the first step.
        state: State of the strategies.
        timings: Work so far.
        entered: Whether a step was begun in this process.
    """

    latents: Tensor
    steps: int = 0
    prediction: Prediction | None = None
    state: RunState = field(factory=RunState)
    timings: Timings = field(factory=Timings)
    entered: bool = False
