"""Whether a timestep can be repeated: whether a scheduler's step is a function of timestep and latents alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitrail.core.schedule.scheduler_noise import SHAPE
from vitrail.core.schedule.streams import Streams
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor

MOST = 6  # steps that are tried; no scheduler of diffusers looks back farther than 4


def check_repeatable(scheduler: Any, takes_generator: bool, options: Mapping[str, float]) -> None:
    """Refuse a scheduler whose step depends on earlier steps: it would take a repeated timestep for a further one.

    Every one of a few steps on a tiny tensor must give what it gives as the first call of a fresh copy.

    Args:
        scheduler: A scheduler whose timesteps are set and that has not stepped; not changed.
        takes_generator: Whether its ``step`` has a ``generator`` argument.
        options: Numbers that its ``step`` is given by name.

    Raises:
        CapabilityError: Naming the first step that depends on those before.
    """
    import torch

    streams, used = Streams(0), copy.deepcopy(scheduler)
    if hasattr(used, "set_begin_index"):  # a run from a picture begins later
        used.set_begin_index(0)

    def stepped(one: Any, index: int) -> Tensor:
        latents, output = streams.normal(SHAPE, "latents", index), streams.normal(SHAPE, "output", index)
        extra: dict[str, object] = dict(options)
        if takes_generator:
            extra["generator"] = streams.generator("noise", index)
        if hasattr(one, "scale_model_input"):
            one.scale_model_input(latents, one.timesteps[index])
        found: Tensor = one.step(output, one.timesteps[index], latents, return_dict=False, **extra)[0]
        return found

    for index in range(min(MOST, len(scheduler.timesteps))):
        fresh = copy.deepcopy(scheduler)
        if hasattr(fresh, "set_begin_index"):
            fresh.set_begin_index(index)
        if not torch.allclose(stepped(used, index), stepped(fresh, index), rtol=0, atol=0, equal_nan=True):
            raise CapabilityError(
                f"{type(scheduler).__name__} remembers earlier steps (its step {index + 1} depends on those before), "
                "so a timestep cannot be repeated with it; use one whose step is a function of timestep and latents, "
                "such as DDIMScheduler or EulerDiscreteScheduler, or set repeat.times = 0"
            )
