"""``upsample``: the low band of a large picture follows the network's output for a small copy of it.

Upsample Guidance (Hwang et al., 2024, https://arxiv.org/abs/2404.01709), sec. 4. The mean D over m x m cells keeps the
signal and divides the deviation of white noise by m, so D of the latents is a picture of the training size with the
noise of an earlier timestep tau, where sigma / alpha is 1 / m of that at t. With what the network says of it, n_L,

    n + w U[n_L / m - D(n)]        w = scale while t >= (1 - until) T, else 0

is the corrected noise; U repeats cells, so that D U is the identity. The same in clean latents, in which it is worked
out since there is no n where a flow begins with noise alone, is

    x0 + w U[x0_L - D(x0)]

and so for w = 1 the low band of the picture is the small picture's. A mean of latents is not a mean of pixels, which is
why guidance ends early.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import share
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.cost import Cost
from vitrail.core.method.micro_batch import SizeConditioning
from vitrail.core.method.protocols import Point
from vitrail.core.schedule.prediction import Prediction
from vitrail.plugins.patching.whole import rolled_views, wrapped_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.step import Step

SIZES = SizeConditioning(original="native", target="native", crop="none")


@frozen(kw_only=True)
class UpsampleGuidance:
    """Correct the canvas by the network's output for its m x m means.

    Any size and aspect ratio will do: where sides are no multiples of m, the last means repeat the edge. One m for both
    axes keeps proportions. A picture whose m is 1 is left as it is.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "canvas"
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 1 replaces what is large, 0 is off
    until: float = field(default=0.6, validator=share)  # share of the training timesteps that is guided, the noisiest
    factor: int | None = field(default=None, validator=v.optional(v.ge(1)))  # m; if unset the root of the canvas's
    # area over a training picture's, rounded

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """The canvas's prediction with its m x m means moved towards those that the network predicts of the small copy.

        The clean latents are Float32[Tensor, "batch channels height width"]. Unchanged where m is 1 and after the share
        ``until`` of the training timesteps.
        """
        canvas = scene.canvas
        assert canvas is not None
        m = self._factor(step, canvas)
        if m == 1:
            return subject, None
        small = self._small(step, subject.latents, scene, m)
        low = small.clean - pooled(subject.clean, m)
        return subject.move_clean(self.scale * repeated(low, m, canvas.height, canvas.width)), None

    def cost(self, step: Step, canvas: Canvas, branches: int) -> Cost:
        """One forward of the small view a branch at every guided step."""
        m = self._factor(step, canvas)
        return Cost() if m == 1 else Cost(rows={math.prod(small_view(canvas, m).shape): branches})

    def _factor(self, step: Step, canvas: Canvas) -> int:
        """Cells of a mean's side at a step; 1 where there is nothing to do."""
        if self.scale == 0 or self.until == 0 or step.timestep < (1 - self.until) * step.train_timesteps:
            return 1
        if self.factor is not None:
            return self.factor
        return max(1, math.floor(math.sqrt(math.prod(canvas.inner)) / canvas.native + 0.5))

    def _small(self, step: Step, latents: Tensor, scene: GuidanceContext, m: int) -> Prediction:
        """The network's prediction for the small copy, at the timestep whose noise level is that of the means."""
        ask, step_at, streams, canvas = scene.ask, scene.step_at, scene.streams, scene.canvas
        assert ask is not None
        assert step_at is not None
        assert streams is not None
        assert canvas is not None
        quiet = step_at(step.alpha, step.sigma / m)
        norm = (step.alpha + step.sigma / m) / (quiet.alpha + quiet.sigma)  # in the network's own form
        model_input = pooled(latents, m) / norm
        view = rolled_views([small_view(canvas, m)], step, streams)[0]
        return Prediction(model_input, ask(quiet, model_input, view, sizes=SIZES), quiet)


def small_view(canvas: Canvas, m: int) -> View:
    """The whole canvas in steps of m cells, as many as cover it."""
    tall, wide = wrapped_lengths(canvas)
    return View(Span(0, -(-canvas.height // m), m, tall), Span(0, -(-canvas.width // m), m, wide))


def pooled(cells: Tensor, m: int) -> Tensor:
    """Means over m x m cells, Float32[Tensor, "batch channels ceil(height/m) ceil(width/m)"].

    The edge is repeated below and to the right, where the sides are no multiples of m.

    Args:
        cells: Float32[Tensor, "batch channels height width"].
        m: Cells of a mean's side.
    """
    import torch.nn.functional as F

    down, right = -cells.shape[-2] % m, -cells.shape[-1] % m
    whole = F.pad(cells, (0, right, 0, down), mode="replicate") if down or right else cells
    return F.avg_pool2d(whole, m)


def repeated(means: Tensor, m: int, height: int, width: int) -> Tensor:
    """Every mean in its m x m cells, cut at the canvas's ends, Float32[Tensor, "batch channels height width"]."""
    return means.repeat_interleave(m, -2).repeat_interleave(m, -1)[..., :height, :width]
