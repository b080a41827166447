"""``broadcast``: the clean prediction of one strided view, enlarged to the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from vitrail.core.schedule.prediction import Prediction
from vitrail.errors import CoverageError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import View
    from vitrail.core.schedule.step import Step


@frozen
class Broadcast:
    """The clean prediction of the one view the network saw stands for every lattice.

    The limit of structure guidance with full weight everywhere and a clean key view: the other views'
    predictions cancel out, so they need not be computed. Only for ``lattice`` with ``views = "key"``.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """The network output that belongs to the enlarged clean prediction, held against the canvas.

        Args:
            step: Whose noise schedule relates output and clean latents.
            views: One strided view.
            prediction: Its clean latents are Float32[Tensor, "1 batch channels h w"], enlarged to the nearest cell.
            latents: Float32[Tensor, "batch channels height width"].

        Returns:
            Float32[Tensor, "batch channels height width"].

        Raises:
            CoverageError: If the enlarged view has not the canvas's size.
        """
        (view,) = views
        down, right = view.vertical.step, view.horizontal.step
        clean = prediction.clean[0].repeat_interleave(down, dim=-2).repeat_interleave(right, dim=-1)
        if clean.shape != latents.shape:
            raise CoverageError(
                f"`broadcast` enlarges a lattice view to the canvas; a view of {view.shape} does not fit"
            )
        clean = clean.roll((view.vertical.start, view.horizontal.start), (-2, -1))  # of a view that has moved round
        nothing = Prediction(latents, latents.new_zeros(latents.shape), step)
        return nothing.with_clean(clean).model_output
