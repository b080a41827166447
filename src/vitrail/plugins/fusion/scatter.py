"""``scatter``: the views are a partition of the canvas, and each one's output is written to its own cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.errors import CoverageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import View
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen
class Scatter:
    """Each view's output is written to its own cells; the views must be a partition of the canvas.

    CutDiffusion (Lin et al., 2024, https://arxiv.org/abs/2404.15141), stage 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    is_local: ClassVar[bool] = True  # a cell depends on its own view alone
    is_cellwise: ClassVar[bool] = True  # the same

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """The canvas's output, Float32[Tensor, "batch channels height width"].

        Args:
            step: Unused.
            views: A partition of the canvas, such as those of ``lattice``.
            prediction: Its output is Float32[Tensor, "views batch channels h w"].
            latents: Float32[Tensor, "batch channels height width"].

        Raises:
            CoverageError: If the views have more or fewer cells together than the canvas.
        """
        height, width = views[0].shape
        if len(views) * height * width != latents.shape[-2] * latents.shape[-1]:
            raise CoverageError(
                f"{len(views)} views of {height}x{width} do not part a canvas of {latents.shape[-2]}x"
                f"{latents.shape[-1]}; `scatter` takes lattice views, `average` any that cover"
            )
        canvas = latents.new_empty(latents.shape)
        for view, output in zip(views, prediction.model_output, strict=True):
            view.write(canvas, output)
        return canvas
