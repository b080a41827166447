"""``dilated``: strided views of a canvas that is blurred before they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.geometry.views import Patches
from vitrail.plugins.patching.lattice import (
    INTERACTIONS,
    Interaction,
    exchange_order,
    lattice_views,
    outline_of_lattice,
)
from vitrail.plugins.patching.whole import rolled_views

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas, Outline
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

LEAST = 0.01  # of the blur, at the last step


@frozen(kw_only=True)
class Dilated:
    """Strided views of the whole picture, blurred against aliasing.

    DemoFusion (Du et al., 2023, https://arxiv.org/abs/2311.16973), sec. 3.4, with the exchange between views of
    AccDiffusion (Lin et al., 2024, https://arxiv.org/abs/2407.10738), eq. 10 to 12. Only what the network
    sees is blurred; its prediction is held against the canvas as it is.

    One stride for both axes, that of the longer one, keeps the picture's proportions in the views. The canvas is padded
    to multiples of it, or must be one where the ends of an axis meet.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    shows_whole: ClassVar[bool] = True
    sigma: float = field(default=0.8, validator=v.gt(0))  # of the blur at the noisiest step, in latent cells
    power: float = field(default=1.0, validator=v.ge(0))  # of the cosine over timesteps by which the blur fades
    interaction: Interaction = field(
        default="none", validator=v.in_(INTERACTIONS)
    )  # exchange whole pixels between the views at each step, or each channel on its own

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """The stride for both axes, in latent cells: the larger of the canvas's scales."""
        stride = max(canvas.scale("height"), canvas.scale("width"))
        return stride, stride

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """One view for each offset of the lattice, row-major."""
        views = lattice_views(canvas, *self.granularity(canvas))
        order = None
        if self.interaction != "none" and len(views) > 1:
            depth = channels if self.interaction == "element" else 1
            order = exchange_order(
                streams.uniform((len(views), 1, depth, *views[0].shape), "dilated-permutation", step.index)
            )
        return Patches(rolled_views(views, step, streams), order)

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """One view an offset, each 1 / stride of the canvas's sides."""
        return outline_of_lattice(canvas, *self.granularity(canvas))

    def prepare(self, step: Step, model_input: Tensor, canvas: Canvas) -> Tensor:
        """The canvas blurred, with the mean and deviation that it had, Float32[Tensor, "batch channels height width"].

        Twice the input gives twice the result, so it may be scaled for the network before.

        Args:
            step: The blur fades over the timesteps.
            model_input: Float32[Tensor, "batch channels height width"].
            canvas: Says the stride, and where the blur goes on across the ends; elsewhere there are zeros beyond.
        """
        stride, _ = self.granularity(canvas)
        if stride == 1:
            return model_input
        weights = gaussian_weights(deviation_at(self, step), stride)
        soft = blurred(model_input, weights, (canvas.wraps("y"), canvas.wraps("x")))
        return with_moments_of(model_input, soft)


def deviation_at(options: Dilated, step: Step) -> float:
    """Standard deviation of the blur in latent cells: sigma c_3, c_3 = 0.99 c^power + 0.01 as in the authors' code."""
    left: float = step.ramp("timestep") ** options.power
    return options.sigma * ((1 - LEAST) * left + LEAST)


def gaussian_weights(deviation: float, stride: int) -> list[float]:
    """A Gaussian over the 2 stride - 1 cells around one, with a sum of one.

    Args:
        deviation: In cells.
        stride: Of the views.
    """
    bell = [math.exp(-((i / deviation) ** 2) / 2) for i in range(1 - stride, stride)]
    return [weight / sum(bell) for weight in bell]


def blurred(canvas: Tensor, weights: Sequence[float], wraps: tuple[bool, bool]) -> Tensor:
    """Each channel filtered along both axes; slices are added up, so that the sum is the same on every device.

    Args:
        canvas: Float32[Tensor, "batch channels height width"].
        weights: Of an odd number of cells, fewer than twice those of an axis.
        wraps: Whether the ends of (height, width) meet; else there are zeros beyond.
    """
    import torch

    reach = len(weights) // 2
    for axis, meets in zip((-2, -1), wraps, strict=True):
        length = canvas.shape[axis]
        before, after = canvas.narrow(axis, length - reach, reach), canvas.narrow(axis, 0, reach)
        if not meets:
            before, after = torch.zeros_like(before), torch.zeros_like(after)
        wide = torch.cat([before, canvas, after], axis)
        total = weights[0] * wide.narrow(axis, 0, length)
        for begin, weight in enumerate(weights[1:], 1):
            total = total + weight * wide.narrow(axis, begin, length)
        canvas = total
    return canvas


def with_moments_of(wanted: Tensor, values: Tensor) -> Tensor:
    """Values with the mean and deviation of others, one of each for a picture.

    Args:
        wanted: Float32[Tensor, "batch channels height width"].
        values: Of the same shape.
    """
    import torch

    axes = tuple(range(1, values.ndim))
    there, here = torch.std_mean(wanted, axes, keepdim=True), torch.std_mean(values, axes, keepdim=True)
    least = torch.finfo(values.dtype).tiny  # of a flat canvas
    return (values - here[1]) / here[0].clamp(min=least) * there[0] + there[1]
