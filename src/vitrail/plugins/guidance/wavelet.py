"""``wavelet``: the low band of what is predicted stays that of the grown picture.

DiffuseHigh (Kim et al., 2024, https://arxiv.org/abs/2406.18459), sec. 3.2. At a larger size the clean latents x0 that a
step predicts are decoded; of the picture the high bands are kept, the low band is replaced by that of the picture so
far, grown to this size; and what is put together is encoded as the new x0. So structure cannot change, detail can.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from vitrail.core.config.fields import share
from vitrail.core.method.cost import Cost
from vitrail.core.method.protocols import Point

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

WAVELET = "db4"
AXES = (-2, -1)


@frozen(kw_only=True)
class Wavelet:
    """Keep the low wavelet band of the grown picture in the predicted one (DiffuseHigh).

    The authors guide 5 of their 15 steps; a share means the same with any number of steps and any scheduler.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vae"})
    point: ClassVar[Point] = "canvas"
    follows_start: ClassVar[bool] = True
    compares_pictures: ClassVar[bool] = True  # so a larger size must be entered by pixels
    until: float = field(default=0.33, validator=share)  # share of the stage's steps, from its noisiest on

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """The canvas's prediction with x0 decoded, given the grown picture's low band and encoded again.

        The clean latents are Float32[Tensor, "batch channels height width"]. At the first size, and after the share
        ``until`` of the stage's steps, the subject is returned unchanged.
        """
        if not self._acts(step):
            return subject, None
        vae, start, canvas = scene.vae, scene.start, scene.canvas
        assert vae is not None
        assert start is not None
        assert start.picture is not None
        assert canvas is not None
        shown = 2 * vae.decode(subject.clean, canvas) - 1
        return subject.with_clean(vae.encode(with_low_band(shown, start.picture, canvas), canvas)), None

    def cost(self, step: Step, canvas: Canvas, branches: int) -> Cost:
        """One decode and one encode of the whole canvas at every guided step."""
        return Cost(decodes=1, encodes=1) if self._acts(step) else Cost()

    def _acts(self, step: Step) -> bool:
        return step.phase > 0 and step.stage_step < math.floor(self.until * step.stage_num_steps + 0.5)


def with_low_band(picture: Tensor, wanted: Tensor, canvas: Canvas) -> Tensor:
    """A picture with the low band of another one: db4, one level, mirrored at its edges unless they meet.

    The transform is linear, so the low band of their difference is added; a picture's own low band changes no bit.

    Args:
        picture: Gives the high bands, Float32[Tensor, "batch 3 Height Width"].
        wanted: Gives the low band, of the same shape and range.
        canvas: Says which edges meet.
    """
    import pywt
    import torch

    difference = (wanted.float() - picture.float()).cpu().numpy()
    modes = tuple("periodic" if canvas.wraps(axis) else "symmetric" for axis in ("y", "x"))
    low, _ = pywt.dwt2(difference, WAVELET, modes, AXES)
    added = pywt.idwt2((low, (None, None, None)), WAVELET, modes, AXES)
    height, width = picture.shape[-2:]
    return picture + torch.from_numpy(added[..., :height, :width]).to(picture)
