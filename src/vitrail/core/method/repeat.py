"""``repeat``: every timestep of a stage is done more than once, its noise added again in between."""

from __future__ import annotations

from attrs import field, frozen
from attrs import validators as v


@frozen(kw_only=True)
class Repeat:
    """Do every timestep again after its noise was added again, so that parts that do not agree can settle.

    The resampling of RePaint (Lugmayr et al., 2022, https://arxiv.org/abs/2201.09865), sec. 4.2, as ElasticDiffusion
    (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822) takes it: all timesteps but the last of a size. Only for
    schedulers whose step is a function of timestep and latents, which excludes multistep ones.
    """

    times: int = field(default=1, validator=v.ge(0))  # how often a timestep is done again; 0 is off
    guidance_factor: float = field(default=1.0, validator=v.gt(0))  # multiplies the guidance scale when it is
