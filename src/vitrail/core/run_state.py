"""How far a run has come: all that must be kept to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define, field

from vitrail.core.trail import Trail

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.prediction import Prediction
    from vitrail.core.relay import Relay


@define
class RunState:
    """What strategies carry from step to step, the relay of a stage that has one, and the trail of the step in work."""

    stage: int = -1
    guidance: list[Any] = field(factory=list)
    masking: Any = None
    relay: Relay | None = None
    trail: Trail = field(factory=Trail)


@define
class Timings:
    """Seconds of a run on this rank, by what they went into, and rows counted over all ranks."""

    predict_s: float = 0.0
    total_s: float = 0.0
    rows: int = 0


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
