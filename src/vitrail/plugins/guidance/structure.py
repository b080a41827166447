"""Structure guidance: the key view's prediction steers the other views.

ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), sec. 4. With the key view's noise
prediction n_0, clean prediction x0_0, a weight w and a mask M in [0, 1], a view i is corrected by form:

    x0        x0_i + clamp(w M, 0, 1) (x0_0 - x0_i)
    literal   n_i + w M (n_0 - n_i)                       eq. 3 and 4 as printed
    reversed  n_i - w M (n_0 - n_i)
    cfg-like  n_0 + w M (n_i - n_0)                       w = 1 is off

What the key view tells the others is one tensor, its clean or noise prediction with the mask as a last channel,
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


@frozen
class NoGuidance:
    """Corrects nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    is_idle: ClassVar[bool] = True

    def init(self) -> None:
        """No state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """The subject as it is."""
        return subject, None

    def lag(self, step: Step) -> None:
        """No message is needed."""
        return

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """Not asked for."""
        raise NotImplementedError

    def follow(self, step: Step, subject: Prediction, key: int, message: Tensor | None) -> Prediction:
        """The subject as it is."""
        return subject


@frozen(kw_only=True)
class SyncGuidance:
    """Structure guidance by the key view's prediction of the same step."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    reads_mask: ClassVar[bool] = True
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off, for cfg-like 1 is
    form: Form = field(default="x0", validator=v.in_(FORMS))  # x0: the clean prediction;
    # the others: the noise, as eq. 3 is printed, with the other sign, or like classifier-free guidance
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the scale over the stage

    def init(self) -> None:
        """No state."""

    def guide(self, step: Step, subject: Prediction, scene: GuidanceContext, state: None) -> tuple[Prediction, None]:
        """All views but the key view, corrected."""
        message = self.tell(step, subject, scene.key, scene.key_mask)
        return corrected(subject, scene.key, message, _weight(self, step), self.form, scene.own_masks), None

    def lag(self, step: Step) -> int:
        """The message of the same step."""
        return 0

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """The key view's message."""
        return message_of(subject, key, mask, self.form)

    def follow(self, step: Step, subject: Prediction, key: int, message: Tensor | None) -> Prediction:
        """All views but the key view, corrected by a message."""
        return corrected(subject, key, message, _weight(self, step), self.form)


@frozen(kw_only=True)
class AsyncGuidance:
    """Structure guidance by the key view's message of the step before, exactly one step old.

    So that no view waits for the key view within a step. Warm-up steps use the step's own message.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    reads_mask: ClassVar[bool] = True
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off, for cfg-like 1 is
    form: Form = field(default="x0", validator=v.in_(FORMS))  # x0: the clean prediction;
    # the others: the noise, as eq. 3 is printed, with the other sign, or like classifier-free guidance
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the scale over the stage
    warmup_steps: int = field(default=1, validator=v.ge(0))  # synchronous steps; 0 leaves the first unguided

    def init(self) -> Tensor | None:
        """No message yet."""
        return None

    def guide(
        self, step: Step, subject: Prediction, scene: GuidanceContext, state: Tensor | None
    ) -> tuple[Prediction, Tensor]:
        """All views but the key view, corrected by the message of the step before."""
        fresh = self.tell(step, subject, scene.key, scene.key_mask)
        message = state if self.lag(step) else fresh
        return corrected(subject, scene.key, message, _weight(self, step), self.form, scene.own_masks), fresh

    def lag(self, step: Step) -> int:
        """The message of the step before, after the warm-up."""
        return 0 if step.stage_step < self.warmup_steps else 1

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """The key view's message."""
        return message_of(subject, key, mask, self.form)

    def follow(self, step: Step, subject: Prediction, key: int, message: Tensor | None) -> Prediction:
        """All views but the key view, corrected by a message."""
        return corrected(subject, key, message, _weight(self, step), self.form)


def message_of(subject: Prediction, key: int, mask: Tensor | None, form: Form) -> Tensor:
    """The key view's message; without a mask its weight is 1 everywhere."""
    import torch

    told = (subject.clean if form == "x0" else subject.noise)[key]
    weight = told.new_ones(told.shape[0], 1, *told.shape[2:]) if mask is None else mask.to(told.dtype)
    return torch.cat([told, weight.expand(told.shape[0], -1, -1, -1)], dim=1)


def _weight(options: SyncGuidance | AsyncGuidance, step: Step) -> float:
    return options.scale * step.ramp(options.ramp)


def corrected(
    subject: Prediction, key: int, message: Tensor | None, scale: float, form: Form, masks: Tensor | None = None
) -> Prediction:
    """Correct every view but the key view; a scale of 0 (1 for ``cfg-like``) changes no bit.

    Args:
        subject: All views, Float32[Tensor, "views batch channels h w"].
        key: Index of the key view.
        message: Of this step or the one before; None leaves the subject as it is.
        scale: w, the ramp included.
        form: See the module.
        masks: Of every view its own, Float32[Tensor, "views batch 1 h w"]; the message's for all if None.
    """
    if message is None:
        return subject
    told, weight = message[:, :-1], scale * (message[:, -1:] if masks is None else masks.to(message.dtype))
    own = subject.clean if form == "x0" else subject.noise
    if form == "x0":
        weight = weight.clamp(0, 1)
    elif form == "reversed":
        weight = -weight
    elif form == "cfg-like":
        weight = 1 - weight
    delta = weight * (told - own)
    delta[key] = 0
    return subject.move_clean(delta) if form == "x0" else subject.move_noise(delta)
