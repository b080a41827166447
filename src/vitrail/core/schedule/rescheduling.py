"""Noise re-scheduling: a scheduler whose latents have more noise at every timestep, for pictures larger than trained.

White noise is averaged out when a picture is made smaller, and the picture is not. So a large picture at a timestep,
made as small as in training, has less noise than the network has learnt to expect there. MegaFusion (Wu et al., 2024,
https://arxiv.org/abs/2408.11001), sec. 4.2, gives the large one more: with ``a`` for the cumulative alpha and ``g`` for
the ratio of areas, 4 for twice the side,

    a / (1 - a) = g a' / (1 - a')        a' = a / (g - (g - 1) a)

The timesteps that the network is told stay what they are. The paper's models predict noise. A velocity is a mixture by
the network's own scales and is read by the new ones, as any scheduler with this table would, so it leaves some noise.
"""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from vitrail.core.schedule.noise_schedule import is_flow
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitrail.core.schedule.noise_schedule import Scheduler


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
    return cast("Scheduler", type(own).from_config(own.config, trained_betas=betas))
