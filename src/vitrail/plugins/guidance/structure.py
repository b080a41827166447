"""``sync`` and ``async``: structure guidance, the key view's prediction steers the other views.

ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), sec. 4. With the key view's noise
prediction n_0, clean prediction x0_0, a weight w and a mask M in [0, 1], a view i is corrected by form:

    x0        x0_i + clamp(w M, 0, 1) (x0_0 - x0_i)
    literal   n_i + w M (n_0 - n_i)                       eq. 3 and 4 as printed
    reversed  n_i - w M (n_0 - n_i)
    cfg-like  n_0 + w M (n_i - n_0)                       w = 1 is off

The key view's message to the others is one tensor, its clean or noise prediction with the mask as a last channel,
Float32[Tensor, "batch channels+1 h w"]; in the ``x0`` form it is free of the noise level.

``literal`` takes out a view's own noise estimate and so leaves its noise in the picture; ``x0`` moves what
is shown and leaves the noise alone, which is why it is the default. Where latents are noise alone (alpha = 0, as at the
first step of a flow) they say the noise of a view, whatever is predicted, so only ``x0`` corrects anything there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import RAMPS
from vitrail.core.method.protocols import Point
from vitrail.core.schedule.step import Ramp

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step

Form = Literal["x0", "literal", "reversed", "cfg-like"]
FORMS = ("x0", "literal", "reversed", "cfg-like")


@frozen(kw_only=True)
class StructureGuidance:
    """What ``sync`` and ``async`` have in common; abstract: each says how old the message is that it follows."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    reads_mask: ClassVar[bool] = True
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off, for cfg-like 1 is
    form: Form = field(default="x0", validator=v.in_(FORMS))  # x0: the clean prediction;
    # the others: the noise, as eq. 3 is printed, with the other sign, or like classifier-free guidance
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the scale over the stage

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """The key view's message, Float32[Tensor, "batch channels+1 h w"].

        Args:
            step: Unused.
            subject: All views, Float32[Tensor, "views batch channels h w"].
            key: Index of the key view.
            mask: Float32[Tensor, "batch 1 h w"] in [0, 1]; None is 1 everywhere.
        """
        import torch

        own = (subject.clean if self.form == "x0" else subject.noise)[key]
        weight = own.new_ones(own.shape[0], 1, *own.shape[2:]) if mask is None else mask.to(own.dtype)
        return torch.cat([own, weight.expand(own.shape[0], -1, -1, -1)], dim=1)

    def follow(
        self, step: Step, subject: Prediction, key: int, message: Tensor | None, masks: Tensor | None = None
    ) -> Prediction:
        """Correct every view but the key view; a scale of 0 (1 for ``cfg-like``) changes no bit.

        Args:
            step: Its place in the stage ramps the scale.
            subject: All views, Float32[Tensor, "views batch channels h w"].
            key: Index of the key view.
            message: Float32[Tensor, "batch channels+1 h w"]; None leaves the subject as it is.
            masks: One a view, Float32[Tensor, "views batch 1 h w"]; the message's for all if None.
        """
        if message is None:
            return subject
        scale = self.scale * step.ramp(self.ramp)
        theirs, weight = message[:, :-1], scale * (message[:, -1:] if masks is None else masks.to(message.dtype))
        own = subject.clean if self.form == "x0" else subject.noise
        if self.form == "x0":
            weight = weight.clamp(0, 1)
        elif self.form == "reversed":
            weight = -weight
        elif self.form == "cfg-like":
            weight = 1 - weight
        delta = weight * (theirs - own)
        delta[key] = 0
        return subject.move_clean(delta) if self.form == "x0" else subject.move_noise(delta)


@frozen(kw_only=True)
class SyncGuidance(StructureGuidance):
    """Structure guidance by the key view's prediction of the same step."""

    def init(self) -> None:
        """None: there is no state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """All views but the key view, corrected by this step's message."""
        message = self.tell(step, subject, scene.key, scene.key_mask)
        return self.follow(step, subject, scene.key, message, scene.own_masks), None

    def lag(self, step: Step) -> int:
        """0: the message of the same step."""
        return 0


@frozen(kw_only=True)
class AsyncGuidance(StructureGuidance):
    """Structure guidance by the key view's message of the step before, exactly one step old.

    So no view waits for the key view within a step. Warm-up steps use the step's own message.
    """

    warmup_steps: int = field(default=1, validator=v.ge(0))  # synchronous steps; 0 leaves the first unguided

    def init(self) -> Tensor | None:
        """None: no message has been sent."""
        return None

    def guide(
        self, step: Step, subject: Prediction, scene: GuidanceContext, state: Tensor | None
    ) -> tuple[Prediction, Tensor]:
        """All views but the key view, corrected by the message of ``lag`` steps before, and this step's message."""
        fresh = self.tell(step, subject, scene.key, scene.key_mask)
        message = state if self.lag(step) else fresh
        return self.follow(step, subject, scene.key, message, scene.own_masks), fresh

    def lag(self, step: Step) -> int:
        """1, the message of the step before; 0 in the warm-up steps."""
        return 0 if step.stage_step < self.warmup_steps else 1
