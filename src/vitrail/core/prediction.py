"""Prediction records: what the network said, readable as noise, clean latents or velocity.

With latents ``x = a x0 + s n`` (a: alpha, s: sigma, n: noise) and ``c = sqrt(a^2 + s^2)`` the network's
output y reads, element by element (Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512, app. D;
Lipman et al., 2023, https://arxiv.org/abs/2210.02747, for the flow):

    epsilon          y = n
    sample           y = x0
    v_prediction     y = (a n - s x0) / c
    flow_prediction  y = n - x0

The output itself is kept, and a correction is added to it, so that no correction leaves it bit for bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import evolve, frozen

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.step import Step


@frozen(eq=False)
class Prediction:
    """A network output held against the latents it speaks of.

    Attributes:
        latents: x_t, Float32[Tensor, "*shape"].
        model_output: Undecoded output, Float32[Tensor, "*shape"].
        step: Gives alpha, sigma and the prediction type.
    """

    latents: Tensor
    model_output: Tensor
    step: Step

    @property
    def clean(self) -> Tensor:
        """The predicted clean latents x0, Float32[Tensor, "*shape"]."""
        a, s, x, y = self.step.alpha, self.step.sigma, self.latents, self.model_output
        match self.step.prediction_type:
            case "epsilon":
                return (x - s * y) / a
            case "sample":
                return y
            case "v_prediction":
                c = math.hypot(a, s)
                return (a / c**2) * x - (s / c) * y
            case "flow_prediction":
                return (x - s * y) / (a + s)

    @property
    def noise(self) -> Tensor:
        """The noise prediction, Float32[Tensor, "*shape"]; needs sigma > 0 for ``sample``."""
        a, s, x, y = self.step.alpha, self.step.sigma, self.latents, self.model_output
        match self.step.prediction_type:
            case "epsilon":
                return y
            case "sample":
                return (x - a * y) / s
            case "v_prediction":
                c = math.hypot(a, s)
                return (s / c**2) * x + (a / c) * y
            case "flow_prediction":
                return (x + a * y) / (a + s)

    def move_clean(self, delta: Tensor) -> Prediction:
        """The record whose clean latents differ by ``delta``, Float32[Tensor, "*#shape"]."""
        return evolve(self, model_output=self.model_output + self._per_clean() * delta)

    def move_noise(self, delta: Tensor) -> Prediction:
        """The record whose noise differs by ``delta``, Float32[Tensor, "*#shape"]."""
        a, s = self.step.alpha, self.step.sigma
        factor = 1.0 if self.step.prediction_type == "epsilon" else -self._per_clean() * s / a
        return evolve(self, model_output=self.model_output + factor * delta)

    def with_clean(self, clean: Tensor) -> Prediction:
        """The record that predicts these clean latents, Float32[Tensor, "*shape"]."""
        return self.move_clean(clean - self.clean)

    def _per_clean(self) -> float:
        """Change of the output for a unit change of the clean latents."""
        a, s = self.step.alpha, self.step.sigma
        match self.step.prediction_type:
            case "epsilon":
                return -a / s
            case "sample":
                return 1.0
            case "v_prediction":
                return -math.hypot(a, s) / s
            case "flow_prediction":
                return -(a + s) / s
