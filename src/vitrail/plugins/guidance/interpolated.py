"""``interpolated``: structure guidance by the key view's prediction, read between its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import RAMPS
from vitrail.core.method.protocols import Point
from vitrail.core.schedule.step import Ramp
from vitrail.errors import ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Span, View
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class Interpolated:
    """Every view's clean prediction follows the key view's, interpolated to the places of the view's own cells.

    Structure guidance of ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), eq. 4, in its clean form,
    x0_i + clamp(w M, 0, 1) (x0_key - x0_i), gives cell (y, x) of every strided view the value of the key view's cell
    (y, x), so the canvas shows the key view enlarged to the nearest cell, in blocks. A view's cells lie between the key
    view's; here x0_key and the mask M are read there, linearly, so the canvas shows the key view enlarged bilinearly.
    Beyond its last cell the key view goes on as that cell, or, where the ends of the axis meet, to its first one.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    reads_mask: ClassVar[bool] = True
    interpolates_key: ClassVar[bool] = True
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the scale over the stage

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """All views but the key view, corrected by this step's prediction of the key view.

        The clean latents are Float32[Tensor, "views batch channels h w"].

        Raises:
            ShapeError: If the views are no lattice, whose cells lie between those of the key view.
        """
        scale = self.scale * step.ramp(self.ramp)
        if scale == 0:
            return subject, None
        assert scene.patches is not None
        key, views, masks = scene.key, scene.patches.views, scene.own_masks
        if masks is None and scene.key_mask is not None:
            masks = at_places(scene.key_mask, views, key)
        weight = min(scale, 1.0) if masks is None else (scale * masks).clamp(0, 1)
        delta = weight * (at_places(subject.clean[key], views, key) - subject.clean)
        delta[key] = 0
        return subject.move_clean(delta), None


def at_places(values: Tensor, views: Sequence[View], key: int) -> Tensor:
    """Values of the key view's cells, read linearly at the cells of every view.

    Args:
        values: Float32[Tensor, "batch channels h w"].
        views: A lattice.
        key: Index of the key view.

    Returns:
        Float32[Tensor, "views batch channels h w"].

    Raises:
        ShapeError: If a view's cells are not between the key view's.
    """
    down = [_fraction(view.vertical, views[key].vertical) for view in views]
    right = [_fraction(view.horizontal, views[key].horizontal) for view in views]
    read = _moved(values.expand(len(views), *values.shape), down, -2, views[key].vertical)
    return _moved(read, right, -1, views[key].horizontal)


def _fraction(span: Span, key: Span) -> float:
    """How far a span's cells lie after the key span's, in distances of these."""
    distance = (span.start - key.start) / key.step
    if (span.step, span.count) != (key.step, key.count) or not -1 < distance < 1:
        raise ShapeError(f"{span} does not lie between the cells of {key}, as the views of a lattice do")
    return distance


def _moved(values: Tensor, fractions: Sequence[float], axis: int, span: Span) -> Tensor:
    """Values read so far after their cells along an axis, one fraction for each of the first dimension."""
    if not any(fractions):
        return values
    after, before = (_neighbour(values, axis, by, span.length is not None) for by in (1, -1))
    far = values.new_tensor(fractions).view(-1, *[1] * (values.ndim - 1))
    return values + far.clamp(min=0) * (after - values) + far.clamp(max=0) * (values - before)


def _neighbour(values: Tensor, axis: int, by: int, meets: bool) -> Tensor:
    """Every cell's next (1) or previous (-1) neighbour along an axis; at an end that meets no other the cell itself."""
    rolled = values.roll(-by, axis)
    if not meets:
        end = -1 if by > 0 else 0
        rolled.select(axis, end).copy_(values.select(axis, end))
    return rolled
