"""Guidance on the canvas: keep the predicted clean latents within their own quantile."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.protocols import Point

if TYPE_CHECKING:
    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class ClampClean:
    """Clamp outliers of the predicted clean latents, which a high guidance scale makes.

    Dynamic thresholding as in Imagen (Saharia et al., 2022, https://arxiv.org/abs/2205.11487), sec. 2.3,
    for each latent channel and without the division, since latents have no fixed range.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "canvas"
    quantile: float = field(default=0.995, validator=v.and_(v.gt(0.0), v.le(1.0)))  # of the size; 1.0 clamps nothing

    def init(self) -> None:
        """No state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """The canvas's prediction without outliers."""
        clean = subject.clean
        limit = clean.abs().flatten(2).quantile(self.quantile, dim=2)[..., None, None]
        return subject.move_clean(clean.clamp(-limit, limit) - clean), None
