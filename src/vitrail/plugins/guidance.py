"""Structure guidance: the key view's prediction steers the other views.

ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163), sec. 4. With the key view's noise
prediction n_0, clean prediction x0_0, a weight w and a mask M in [0, 1], a view i is corrected by form:

    x0        x0_i + clamp(w M, 0, 1) (x0_0 - x0_i)
    literal   n_i + w M (n_0 - n_i)                       eq. 3 and 4 as printed
    reversed  n_i - w M (n_0 - n_i)
    cfg-like  n_0 + w M (n_i - n_0)                       w = 1 is off

``literal`` takes out a view's own noise estimate and so leaves its noise in the picture; ``x0`` moves what
is shown and leaves the noise alone, which is why it is the default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.fields import RAMPS
from vitrail.core.protocols import Point
from vitrail.core.step import Ramp

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.prediction import Prediction
    from vitrail.core.step import Step

Form = Literal["x0", "literal", "reversed", "cfg-like"]
FORMS = ("x0", "literal", "reversed", "cfg-like")


@frozen(eq=False)
class Message:
    """What the key view tells the others: free of the noise level in the ``x0`` form.

    Attributes:
        key: Clean or noise prediction of the key view, by form, Float32[Tensor, "batch channels h w"].
        mask: Float32[Tensor, "batch 1 h w"], or None for everywhere.
    """

    key: Tensor
    mask: Tensor | None


@frozen
class NoGuidance:
    """Corrects nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"

    def init(self) -> None:
        """No state."""

    def guide(
        self, step: Step, subject: Prediction, key: int, mask: Tensor | None, state: None
    ) -> tuple[Prediction, None]:
        """The subject as it is."""
        return subject, None


@frozen(kw_only=True)
class SyncGuidance:
    """Structure guidance by the key view's prediction of the same step."""

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off, for cfg-like 1 is
    form: Form = field(default="x0", validator=v.in_(FORMS))  # what is corrected, see the module
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the scale over the stage

    def init(self) -> None:
        """No state."""

    def guide(
        self, step: Step, subject: Prediction, key: int, mask: Tensor | None, state: None
    ) -> tuple[Prediction, None]:
        """All views but the key view, corrected."""
        message = tell(subject, key, mask, self.form)
        return follow(subject, key, message, self.scale * step.ramp(self.ramp), self.form), None


@frozen(kw_only=True)
class AsyncGuidance:
    """Structure guidance by the key view's message of the step before, exactly one step old.

    So that no view waits for the key view within a step. Warm-up steps use the step's own message.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    point: ClassVar[Point] = "views"
    scale: float = field(default=1.0, validator=v.ge(0))  # w; 0 is off, for cfg-like 1 is
    form: Form = field(default="x0", validator=v.in_(FORMS))  # what is corrected, see the module
    ramp: Ramp = field(default="constant", validator=v.in_(RAMPS))  # of the scale over the stage
    warmup_steps: int = field(default=1, validator=v.ge(0))  # synchronous steps; 0 leaves the first unguided

    def init(self) -> Message | None:
        """No message yet."""
        return None

    def guide(
        self, step: Step, subject: Prediction, key: int, mask: Tensor | None, state: Message | None
    ) -> tuple[Prediction, Message]:
        """All views but the key view, corrected by the message of the step before."""
        fresh = tell(subject, key, mask, self.form)
        message = fresh if step.stage_step < self.warmup_steps else state
        if message is None:
            return subject, fresh
        return follow(subject, key, message, self.scale * step.ramp(self.ramp), self.form), fresh


def tell(subject: Prediction, key: int, mask: Tensor | None, form: Form) -> Message:
    """The key view's message at this step."""
    return Message((subject.clean if form == "x0" else subject.noise)[key], mask)


def follow(subject: Prediction, key: int, message: Message, scale: float, form: Form) -> Prediction:
    """Correct every view but the key view; a scale of 0 (1 for ``cfg-like``) changes no bit.

    Args:
        subject: All views, Float32[Tensor, "views batch channels h w"].
        key: Index of the key view.
        message: Of this step or an earlier one.
        scale: w, the ramp included.
        form: See the module.
    """
    own = subject.clean if form == "x0" else subject.noise
    weight = own.new_full((1, 1, 1, 1), scale) if message.mask is None else scale * message.mask
    if form == "x0":
        weight = weight.clamp(0, 1)
    elif form == "reversed":
        weight = -weight
    elif form == "cfg-like":
        weight = 1 - weight
    delta = weight * (message.key - own)
    delta[key] = 0
    return subject.move_clean(delta) if form == "x0" else subject.move_noise(delta)
