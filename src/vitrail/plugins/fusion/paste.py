"""``paste``: each cell has the answer of the first view that it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.method.returned_values import uncovered
from vitrail.errors import CoverageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import View
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen
class Paste:
    """The first view in row-major order where views overlap, nothing averaged.

    ElasticDiffusion (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822), its local part: windows see context, so
    that they meet without a mean. In the authors' code a value of exactly 0 is overwritten by a later window; not here.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    is_cellwise: ClassVar[bool] = True  # a cell depends on the views that write it alone

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """The canvas's output, Float32[Tensor, "batch channels height width"].

        Args:
            step: Unused.
            views: In canonical order; together they cover the canvas.
            prediction: Its output is Float32[Tensor, "views batch channels h w"].
            latents: The canvas, for its shape.

        Raises:
            CoverageError: If a latent cell lies in no view.
        """
        hole = uncovered(tuple(views), *latents.shape[-2:])
        if hole is not None:
            raise CoverageError(f"latent cell {hole} lies in no view; use a patching that covers the canvas")
        canvas = latents.new_empty(latents.shape)
        for view, output in zip(reversed(views), prediction.model_output.flip(0), strict=True):
            view.write(canvas, output)
        return canvas
