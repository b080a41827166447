"""An observer: what a run did, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail import hookimpl

if TYPE_CHECKING:
    from vitrail.core.schedule.prediction import Prediction


class Probe:
    """Counts steps and keeps the sharpness of the predicted picture at each.

    Pass it to one sampler, ``Sampler.from_pretrained("demo", plugins=[("probe", probe)])``; other samplers
    do not see it. Attributes: ``steps``, and ``sharpness``, one mean step between neighbouring cells a step.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.sharpness: list[float] = []

    @hookimpl
    def vitrail_run_start(self) -> None:
        """Begin anew; a sampler may be called many times."""
        self.steps, self.sharpness = 0, []

    @hookimpl
    def vitrail_step_end(self, prediction: Prediction) -> None:
        """A hook takes only the arguments it names."""
        clean = prediction.clean
        self.steps += 1
        self.sharpness.append(float(clean.diff(dim=-1).abs().mean() + clean.diff(dim=-2).abs().mean()))
