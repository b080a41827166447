"""``synchronized``: every view is moved towards what the middle one shows.

SyncDiffusion (Lee et al., 2023, https://arxiv.org/abs/2306.05178). At the first steps the clean latents that the
network predicts of the middle view, the anchor, are decoded; and each other view's latents x go down the gradient of
the perceptual distance L between what they show and that picture,

    x - w decay^k dL/dx

at step k. The views so moved are predicted, and the canvas goes on from their mean. The gradient goes through decoder,
network and classifier-free guidance, but not through colours that the decoder takes out of range: they are clipped.
The authors' x has unit variance; where a scheduler's latents are larger by a factor, x and the gradient by x are scaled
accordingly, so that w means the same with every scheduler.

The anchor itself stays as it is. All windows come to look alike, which suits wide scenes and no single objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.file_digests import digest_of_files
from vitrail.core.config.paths import expanded
from vitrail.core.method.cost import Cost
from vitrail.core.method.lpips import check_weights
from vitrail.core.method.protocols import Point
from vitrail.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Outline
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class Synchronized:
    """Move views towards the look of the middle one, by the gradient of a perceptual distance (SyncDiffusion).

    Views are predicted with the run's prompt as this is done, whatever the prompting.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients", "vae"})
    point: ClassVar[Point] = "inputs"
    path_options: ClassVar[tuple[str, ...]] = ("weights",)
    scale: float = field(default=20.0, validator=v.ge(0))  # w at the first step; 0 is off
    decay: float = field(default=0.95, validator=v.and_(v.gt(0), v.le(1)))  # of w from step to step
    steps: int = field(default=5, validator=v.ge(0))  # of the stage that are guided, the noisiest
    weights: str | None = field(
        default=None, validator=v.optional(v.instance_of(str))
    )  # a .safetensors file of LPIPS (VGG16); if unset the judge's features that ship with the demo model

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Tensor, scene: GuidanceContext, state: None) -> tuple[Tensor, None]:
        """The views' latents, Float32[Tensor, "views batch channels h w"], all but the middle one's moved.

        After ``steps`` steps of the stage, and with one view, they are returned unchanged.
        """
        if not self._acts(step, len(subject)):
            return subject, None
        gradients, patches = scene.gradients, scene.patches
        assert gradients is not None
        assert patches is not None
        anchor = len(subject) // 2
        others = [number for number in range(len(subject)) if number != anchor]
        picture = gradients.picture(step, subject[anchor], patches.views[anchor])
        views = [patches.views[number] for number in others]
        uphill = gradients.of_distance(step, subject[others], views, picture, self.weights)
        moved = subject.clone()
        moved[others] -= self.scale * self.decay**step.stage_step * step.norm**2 * uphill
        return moved, None

    def check(self) -> None:
        """Check the file of weights by its header.

        Raises:
            ModelError: If it is missing or is no LPIPS (VGG16).
        """
        if self.weights is not None:
            try:
                check_weights(self.weights)
            except ModelError as error:
                raise ModelError(f"weights: {error}") from error

    def digest(self) -> str:
        """Of the file of weights; "" with the judge's features, which ship with the package."""
        return "" if self.weights is None else digest_of_files([expanded(self.weights)])

    def cost_of_views(self, step: Step, outline: Outline, branches: int) -> Cost:
        """One forward and one decode a view, and one backward pass for every view but the middle one."""
        count = outline.count
        if not self._acts(step, count):
            return Cost()
        return Cost(rows={outline.cells: branches * count}, decodes=count, gradients=count - 1)

    def _acts(self, step: Step, num_views: int) -> bool:
        return self.scale > 0 and step.stage_step < self.steps and num_views > 1
