"""One step of a run, frozen."""

from __future__ import annotations

import math
from typing import Literal

from attrs import frozen

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
Ramp = Literal["constant", "cosine", "linear"]


@frozen(kw_only=True)
class Step:
    """Where a run stands; the latents are ``alpha * x0 + sigma * noise`` in the scheduler's own form.

    Attributes:
        index: Sampling step, 0 is the noisiest.
        num_steps: Calls of the scheduler in the whole run.
        timestep: The scheduler's timestep.
        alpha: Signal scale of the latents.
        sigma: Noise scale of the latents.
        stage: Index of the stage.
        stage_step: Steps done in this stage.
        stage_num_steps: Steps of this stage.
        prediction_type: What the network's output is, in diffusers' words.
    """

    index: int
    num_steps: int
    timestep: float
    alpha: float
    sigma: float
    stage: int
    stage_step: int
    stage_num_steps: int
    prediction_type: PredictionType

    def ramp(self, kind: Ramp) -> float:
        """A factor over the stage: 1 throughout, or from 1 towards 0 by a cosine or a line."""
        done = self.stage_step / max(1, self.stage_num_steps)
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if kind == "constant" else 1.0 - done
