"""One step of a run, frozen."""

from __future__ import annotations

import math
from typing import Literal

from attrs import Factory, field, frozen

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
Ramp = Literal["constant", "cosine", "linear", "timestep"]


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
        phase: Index of the size in a run that grows through several, each with a schedule of its own.
        phase_step: Step of that schedule.
        phase_num_steps: Steps of that whole schedule.
        train_timesteps: How many timesteps the network was trained at.
        next_alpha: Signal scale of the latents that the scheduler's step leaves; after the last one they are clean.
        next_sigma: Noise scale of those.
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
    phase: int = 0
    phase_step: int = field(default=Factory(lambda self: self.index, takes_self=True))
    phase_num_steps: int = field(default=Factory(lambda self: self.num_steps, takes_self=True))
    train_timesteps: int = 1000
    next_alpha: float = 1.0
    next_sigma: float = 0.0

    @property
    def norm(self) -> float:
        """What the latents are divided by to be as the network knows them: of unit variance, or the mix of a flow."""
        if self.prediction_type == "flow_prediction":
            return self.alpha + self.sigma
        return math.hypot(self.alpha, self.sigma)

    def ramp(self, kind: Ramp) -> float:
        """A factor over the stage: 1 throughout, or from 1 towards 0 by a cosine or a line.

        ``timestep`` is a cosine over the network's timesteps instead, 1 at the noisiest and 0 without noise
        (DemoFusion, eq. 4), so it does not depend on where the stage begins.
        """
        if kind == "timestep":
            return 0.5 * (1 - math.cos(math.pi * self.timestep / self.train_timesteps))
        done = self.stage_step / max(1, self.stage_num_steps)
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if kind == "constant" else 1.0 - done
