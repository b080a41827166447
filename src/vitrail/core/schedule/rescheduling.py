"""Noise re-scheduling: a scheduler whose latents have more noise at every timestep, for pictures larger than trained.

White noise is averaged out when a picture is made smaller, and the picture is not. So a large picture at a timestep,
made as small as in training, has less noise than the network has learnt to expect there. MegaFusion (Wu et al., 2024,
https://arxiv.org/abs/2408.11001), sec. 4.2, gives the large one more: with ``a`` for the cumulative alpha and ``g`` for
the ratio of areas, 4 for twice the side,

    a / (1 - a) = g a' / (1 - a')        a' = a / (g - (g - 1) a)

The timesteps that the network is told stay what they are. The paper's models predict noise, which means the same with
any scales. A velocity is a mixture of noise and picture by the scales of the timestep, so it is first read as noise by
those; read by the new scales, as a scheduler with this table would, it costs contrast and leaves noise.
"""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve

from vitrail.core.config.ambient import plain_defaults
from vitrail.core.schedule.noise_schedule import is_flow
from vitrail.core.schedule.prediction import Prediction
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vitrail.core.schedule.noise_schedule import Scheduler
    from vitrail.core.schedule.step import Step


def with_noise(cumulative: Sequence[float], gamma: float) -> list[float]:
    """Return the cumulative alphas whose ratio of signal to noise, in variances, is ``gamma`` times smaller.

    Args:
        cumulative: Cumulative alphas in [0, 1], one per training timestep.
        gamma: Factor, more than 0; 1 changes nothing.
    """
    return [each / (gamma - (gamma - 1) * each) for each in cumulative]


def rescheduled(scheduler: Scheduler, gamma: float) -> Scheduler:
    """Return a scheduler of the same class and settings with the noise of a picture of ``gamma`` times the area.

    Args:
        scheduler: Any scheduler with a table of cumulative alphas, timesteps set or not; not changed.
        gamma: Area of the picture over that of a training picture; 1 returns the scheduler itself.

    Raises:
        CapabilityError: If the scheduler has no such table, as those of a flow, whose timestep is its noise.
    """
    if math.isclose(gamma, 1.0, rel_tol=1e-9):
        return scheduler
    own: Any = scheduler
    takes = "trained_betas" in inspect.signature(type(own).__init__).parameters
    if not takes or is_flow(scheduler):
        raise CapabilityError(
            f"enter.reschedule changes a table of noise over training timesteps, and {type(own).__name__} has none or "
            "does not use it (a flow's timestep is its noise); set enter.reschedule = false and, for a flow, "
            "the scheduler's own 'shift'"
        )
    table = with_noise([float(each) for each in own.alphas_cumprod.tolist()], gamma)
    betas = [1 - now / before for before, now in pairwise([1.0, *table])]
    with plain_defaults():
        return cast("Scheduler", type(own).from_config(own.config, trained_betas=betas))


def reread(output: Tensor, model_input: Tensor, step: Step, gamma: float) -> Tensor:
    """Return an output that says the same noise by a step's scales as the network's does by those of its timestep.

    Args:
        output: Of the network, Float32[Tensor, "rows*batch channels h w"]; of type ``epsilon`` it is returned itself.
        model_input: What the network saw, Float32[Tensor, "rows*batch channels h w"].
        step: Gives the scales of the latents, with the noise of a picture of ``gamma`` times the area.
        gamma: As in ``rescheduled``.
    """
    if step.prediction_type == "epsilon" or gamma == 1.0 or step.alpha == 0:
        return output
    alpha, sigma = step.alpha, step.sigma / math.sqrt(gamma)
    norm = math.hypot(alpha, sigma)
    told = evolve(step, alpha=alpha / norm, sigma=sigma / norm)
    own = Prediction(model_input, output, evolve(step, alpha=step.alpha / step.norm, sigma=step.sigma / step.norm))
    return own.move_noise(Prediction(model_input, output, told).noise - own.noise).model_output
