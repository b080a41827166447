"""``skip-residual``: latents are mixed with the noised picture that the current size began with (DemoFusion)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import RAMPS, share
from vitrail.core.method.protocols import Point
from vitrail.core.schedule.step import Ramp

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class SkipResidual:
    """Mix the grown picture at the step's noise into the latents before each step of a further size.

    DemoFusion (Du et al., 2023, https://arxiv.org/abs/2311.16973), sec. 3.3, eq. 4: x becomes (1 - c) x + c n, with the
    picture n at the noise of the step and c falling from 1 to 0. A smaller power keeps nearer to the grown picture.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "before"
    follows_start: ClassVar[bool] = True
    scale: float = field(default=1.0, validator=share)  # of c; 0 is off
    ramp: Ramp = field(default="timestep", validator=v.in_(RAMPS))  # by which c falls
    power: float = field(default=3.0, validator=v.ge(0))  # of the ramp

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Tensor, scene: GuidanceContext, state: None) -> tuple[Tensor, None]:
        """The latents, mixed with the grown picture at the step's noise; unchanged at the first size.

        Args:
            step: Its noise level is given to the grown picture, and it ramps c.
            subject: Latents before the step, Float32[Tensor, "batch channels height width"].
            scene: Its ``start`` is the picture that the size began with.
            state: None.
        """
        if scene.start is None:
            return subject, None
        weight = self.scale * step.ramp(self.ramp) ** self.power
        return (1 - weight) * subject + weight * scene.start.noised(step), None
