"""The record of one sampling step."""

from __future__ import annotations

import math
from typing import Literal

from attrs import Factory, field, frozen

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
Ramp = Literal["constant", "cosine", "linear", "timestep"]
Point = Literal["before", "inputs", "branches", "views", "canvas", "after"]  # of a step, where guidance acts


@frozen(kw_only=True)
class Step:
    """Position of a run; the latents are ``alpha * x0 + sigma * noise`` in the scheduler's own form.

    Attributes:
        index: Step of the run; 0 is the noisiest.
        num_steps: Calls of the scheduler in the whole run.
        timestep: The scheduler's timestep.
        alpha: Signal scale of the latents.
        sigma: Noise scale of the latents.
        stage: Index of the stage.
        stage_step: Number of steps already done in this stage.
        stage_num_steps: Number of steps of this stage.
        prediction_type: Type of the network's output, in diffusers' words.
        phase: Index of the picture size in a run with several, each with a schedule of its own.
        phase_step: Index of the step in the phase's schedule.
        phase_num_steps: Number of steps of the phase's whole schedule.
        train_timesteps: Number of timesteps that the network was trained at.
        next_alpha: Signal scale of the latents after the scheduler's step; 1 after the last one.
        next_sigma: Noise scale of the latents after the scheduler's step; 0 after the last one.
        repeat: How often this timestep was done before.
        num_repeats: How often this timestep is done again in all.
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
    repeat: int = 0
    num_repeats: int = 0

    @property
    def norm(self) -> float:
        """Divisor that brings the latents to the network's form: unit variance, or the interpolation of a flow."""
        if self.prediction_type == "flow_prediction":
            return self.alpha + self.sigma
        return math.hypot(self.alpha, self.sigma)

    @property
    def noise_level(self) -> float:
        """Standard deviation of the noise beside a signal of scale 1, ``sigma / alpha``; infinite without a signal."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    def ramp(self, kind: Ramp) -> float:
        """Return a factor over the stage: 1 throughout, or falling from 1 towards 0 by a cosine or a line.

        ``timestep`` is instead a cosine over the network's timesteps, 1 at the noisiest and 0 without noise
        (DemoFusion, eq. 4), so it does not depend on where the stage begins.
        """
        if kind == "timestep":
            return 0.5 * (1 - math.cos(math.pi * self.timestep / self.train_timesteps))
        done = self.stage_step / max(1, self.stage_num_steps)
        if kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        return 1.0 if kind == "constant" else 1.0 - done
