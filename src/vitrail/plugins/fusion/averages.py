"""``average`` and ``gaussian``: the mean of overlapping views, in float32 and in the canonical order of views.

The loops run over views, not over pixels: adding slices one after the other is what makes the sum the same
on every device, which an atomic scatter does not promise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.errors import CoverageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitrail.core.geometry.views import View
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

GEOMETRIES = 16  # sets of views whose weights are kept; jittered windows are others at every step


@frozen
class Average:
    """The mean of all views that see a cell: the least-squares fusion of MultiDiffusion, sec. 4.1.

    Bar-Tal et al., 2023, https://arxiv.org/abs/2302.08113, eq. 5 with weights of one.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    is_cellwise: ClassVar[bool] = True  # a cell depends on the views that write it alone

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """The unweighted mean at each cell, Float32[Tensor, "batch channels height width"]; see ``weighted_mean``."""
        return weighted_mean(views, prediction.model_output, latents, None)


@frozen(kw_only=True)
class Gaussian:
    """A mean weighted by a Gaussian on each view: Mixture of Diffusers, sec. 3.

    Jimenez, 2023, https://arxiv.org/abs/2302.02412; the middle of a view of n cells is (n - 1) / 2.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    is_cellwise: ClassVar[bool] = True  # a cell depends on the views that write it alone
    std: float = field(default=0.1, validator=v.gt(0))  # of the Gaussian, as a share of the view's side

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """The weighted mean at each cell, Float32[Tensor, "batch channels height width"]; see ``weighted_mean``."""
        return weighted_mean(views, prediction.model_output, latents, self.std)


def _bell(count: int, std: float) -> list[float]:
    """Gaussian weights with a maximum of one, no smaller than float32 can add up."""
    middle = (count - 1) / 2
    return [max(1e-8, math.exp(-(((i - middle) / (count * std)) ** 2) / 2)) for i in range(count)]


def weighted_mean(views: Sequence[View], outputs: Tensor, latents: Tensor, std: float | None) -> Tensor:
    """Sum of weighted views over the sum of weights; does not wait for the device.

    Args:
        views: Together they cover the canvas.
        outputs: Float32[Tensor, "views batch channels h w"].
        latents: The canvas, for its shape, Float32[Tensor, "batch channels height width"].
        std: Of the Gaussian that weighs each view, as a share of its side; None weighs all cells alike.

    Raises:
        CoverageError: If a latent cell lies in no view.
    """
    if _is_canvas(views, latents):
        return outputs[0]
    height, width = latents.shape[-2:]
    weight, weights = _weights_of(tuple(views), height, width, std, latents.dtype, latents.device)
    total = latents.new_zeros(latents.shape)
    for view, output in zip(views, outputs, strict=True):
        view.add_to(total, output if weight is None else output * weight)
    return total / weights


@functools.lru_cache(maxsize=GEOMETRIES)
def _weights_of(
    views: tuple[View, ...], height: int, width: int, std: float | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor]:
    """The weight of a view's cells, None for one, and the sum of all views' at each cell of the canvas.

    Worked out on the host, where it can be looked at without waiting for the device, once a geometry.

    Returns:
        Float32[Tensor, "h w"] or None, and Float32[Tensor, "height width"]; on the device.
    """
    import torch

    with torch.inference_mode(False), torch.no_grad():  # later runs may be in any mode
        own = torch.ones(views[0].shape, dtype=dtype, device="cpu")
        if std is not None:
            columns, rows = (own.new_tensor(_bell(count, std)) for count in own.shape)
            own = columns[:, None] * rows
        weights = own.new_zeros(height, width)
        for view in views:
            view.add_to(weights, own)
        if not bool((weights > 0).all()):
            raise CoverageError(f"{int((weights == 0).sum())} latent cells lie in no view; use a patching that covers")
        return None if std is None else own.to(device), weights.to(device)


def _is_canvas(views: Sequence[View], latents: Tensor) -> bool:
    """Whether one view is the canvas, cell by cell."""
    first = views[0]
    whole = first.shape == latents.shape[-2:]
    return len(views) == 1 and whole and first.vertical.start == first.horizontal.start == 0
