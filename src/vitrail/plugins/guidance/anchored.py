"""``anchored``: structure guidance by the picture of the size before, in a run that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import RAMPS, share
from vitrail.core.engine.resize import resized
from vitrail.core.method.protocols import Point
from vitrail.core.schedule.step import Ramp

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class Anchored:
    """The coarse part of the predicted clean latents follows the grown picture, where the mask is.

    With the clean prediction x0 of the canvas, the grown latents z, a mask M in [0, 1] and the mean D over blocks of
    cells, enlarged again by U:

        x0 + w clamp(e + (1 - e) M, 0, 1) U D (z - x0)

    It is the structure guidance of ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), eq. 4, in its
    clean form, with the finished picture of the size before in the place of one strided view's prediction; so no view
    waits for another. What is finer than a block is left to the views. The first size has nothing to follow.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "canvas"
    reads_mask: ClassVar[bool] = True
    follows_start: ClassVar[bool] = True
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off
    ramp: Ramp = field(default="cosine", validator=v.in_(RAMPS))  # of the scale over the stage
    power: float = field(default=1.0, validator=v.ge(0))  # of the ramp
    elsewhere: float = field(default=0.0, validator=share)  # e: weight where the mask is 0
    block: int = field(default=2, validator=v.ge(1))  # cells of a block's side

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """The canvas's prediction with its block means moved towards the grown picture's; unchanged at the first size.

        The clean latents are Float32[Tensor, "batch channels height width"]; the context's mask has one channel.
        """
        scale = self.scale * step.ramp(self.ramp) ** self.power
        if scene.start is None or scale == 0:
            return subject, None
        canvas, weight = scene.canvas, scale
        assert canvas is not None
        if scene.mask is not None:
            weight = scale * (self.elsewhere + (1 - self.elsewhere) * scene.mask).clamp(0, 1)
        return subject.move_clean(weight * coarse(scene.start.clean - subject.clean, self.block, canvas)), None


def coarse(latents: Tensor, block: int, canvas: Canvas) -> Tensor:
    """Means over blocks of cells, enlarged again bilinearly, across edges that meet; the last blocks may be smaller.

    Args:
        latents: Float32[Tensor, "batch channels height width"].
        block: Cells of a block's side; 1 changes no bit.
        canvas: Says which edges meet.
    """
    import torch.nn.functional as F

    if block == 1:
        return latents
    height, width = latents.shape[-2:]
    means = F.avg_pool2d(latents, block, ceil_mode=True, count_include_pad=False)
    return resized(means, (height, width), canvas, "bilinear")
