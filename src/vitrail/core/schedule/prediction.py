"""Prediction records: a network output, readable as noise, clean latents or velocity.

With latents ``x = a x0 + s n`` (a: alpha, s: sigma, n: noise) and ``c = sqrt(a^2 + s^2)`` the network's
output y reads, element by element (Salimans and Ho, 2022, https://arxiv.org/abs/2202.00512, app. D;
Lipman et al., 2023, https://arxiv.org/abs/2210.02747, for the flow):

    epsilon          y = n
    sample           y = x0
    v_prediction     y = (a n - s x0) / c
    flow_prediction  y = n - x0

The output itself is stored and corrections are added to it, so that a record without corrections is bit-identical.

At the ends of a schedule the latents alone determine the noise or the clean latents, whatever the network returns:

    a = 0   x = s n, so the noise is x / s. No output can change it, so a correction of the noise has no effect: the
            output that would state it grows without bound as a falls to 0, and the clean latents with it.
    s = 0   x = a x0, so the clean latents are x / a, and a correction of them has no effect, for the same reason.

The other quantity is read from the output as at any step, and can be corrected. Two types are exceptions, since their
output is itself the quantity: ``epsilon`` is the noise and ``sample`` the clean latents, at both ends. The clean
latents of ``epsilon`` at a = 0 and the noise of ``sample`` at s = 0 appear in no term of x or y, so reading them is an
error, and a schedule with such a step is refused before a run begins (``NoiseSchedule.of``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from vitrail.errors import PredictionError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.schedule.step import Step


@frozen(eq=False)
class Prediction:
    """A network output together with the latents that it was computed from.

    Attributes:
        latents: x_t, Float32[Tensor, "*shape"].
        model_output: Raw output of the network, Float32[Tensor, "*shape"].
        step: Gives alpha, sigma and the prediction type.
    """

    latents: Tensor
    model_output: Tensor
    step: Step

    @property
    def clean(self) -> Tensor:
        """The predicted clean latents x0, Float32[Tensor, "*shape"].

        Raises:
            PredictionError: For ``epsilon`` at alpha = 0, where they are undetermined.
        """
        a, s, x, y = self.step.alpha, self.step.sigma, self.latents, self.model_output
        match self.step.prediction_type:
            case "epsilon":
                if a == 0:
                    raise PredictionError(self._left_open("alpha = 0", "clean latents", "v_prediction"))
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
        """The noise prediction, Float32[Tensor, "*shape"].

        Raises:
            PredictionError: For ``sample`` at sigma = 0, where it is undetermined.
        """
        a, s, x, y = self.step.alpha, self.step.sigma, self.latents, self.model_output
        match self.step.prediction_type:
            case "epsilon":
                return y
            case "sample":
                if s == 0:
                    raise PredictionError(self._left_open("sigma = 0", "noise", "v_prediction"))
                return (x - a * y) / s
            case "v_prediction":
                c = math.hypot(a, s)
                return (s / c**2) * x + (a / c) * y
            case "flow_prediction":
                return (x + a * y) / (a + s)

    def move_clean(self, delta: Tensor) -> Prediction:
        """Add ``delta``, Float32[Tensor, "*#shape"], to the clean latents; without effect at sigma = 0."""
        return evolve(self, model_output=self.model_output + self._per_clean() * delta)

    def move_noise(self, delta: Tensor) -> Prediction:
        """Add ``delta``, Float32[Tensor, "*#shape"], to the noise; without effect at alpha = 0."""
        return evolve(self, model_output=self.model_output + self._per_noise() * delta)

    def with_clean(self, clean: Tensor) -> Prediction:
        """Return the record that predicts these clean latents, Float32[Tensor, "*shape"]; see ``move_clean``."""
        return self.move_clean(clean - self.clean)

    def _per_clean(self) -> float:
        """Return the change of the output per unit change of the clean latents."""
        a, s, kind = self.step.alpha, self.step.sigma, self.step.prediction_type
        if kind == "sample":
            return 1.0
        if s == 0:
            return 0.0
        match kind:
            case "epsilon":
                return -a / s
            case "v_prediction":
                return -math.hypot(a, s) / s
            case "flow_prediction":
                return -(a + s) / s

    def _per_noise(self) -> float:
        """Return the change of the output per unit change of the noise."""
        a, s, kind = self.step.alpha, self.step.sigma, self.step.prediction_type
        if kind == "epsilon":
            return 1.0
        if a == 0:
            return 0.0
        if s == 0:
            return 0.0 if kind == "sample" else 1.0  # the limit, where the output depends on the noise alone
        return -self._per_clean() * s / a

    def _left_open(self, end: str, what: str, other: str) -> str:
        kind, index = self.step.prediction_type, self.step.index
        return (
            f"step {index + 1}: at {end} a prediction of type {kind!r} does not say the {what}; use a model of type "
            f"{other!r}, or a schedule without such a step"
        )
