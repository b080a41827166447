"""What a strategy of each slot answers. Strategies are frozen attrs classes; state goes in and comes out.

Shape legend: ``views`` views of one family, ``rows`` pairs of (view, CFG branch), ``batch`` pictures,
``channels`` latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.attention_maps import AttentionRequest, KeptMaps
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

Point = Literal["before", "inputs", "branches", "views", "canvas", "after"]


@frozen(eq=False, kw_only=True)
class Forward:
    """One call of the network, as a rectification sees it.

    Attributes:
        network: The module that predicts.
        step: Where the run stands.
        rows: The micro-batch.
        native_size: Latent cells of the side that the network was trained at.
        streams: The run's randomness, which does not depend on how rows are shared.
    """

    network: nn.Module | None
    step: Step
    rows: MicroBatch
    native_size: int
    streams: Streams


class Rectification(Protocol):
    """A temporary change inside the network, for a range of steps.

    It works by hooks on modules and is undone when the call is over, also if that raised. Ranks may be threads that
    share the network, so it must not act in the forward of another thread. All optional members are in
    ``members.OptionalRectification``.
    """

    needs: ClassVar[frozenset[str]]

    def check(self, network: nn.Module | None) -> None:
        """Refuse a network without the places that it changes, by CapabilityError; asked before any call."""

    def apply(self, forward: Forward) -> AbstractContextManager[object]:
        """A context in which the change is in force; in a step out of its range, one that does nothing."""


class Patching(Protocol):
    """Which views of the canvas does the network see at this step, and in which order of pixels.

    All optional members are in ``members.OptionalPatching``.
    """

    needs: ClassVar[frozenset[str]]

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """The canvas is padded to multiples of these (height, width)."""

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """The views of this step; as many at every step of a stage."""


class Prompting(Protocol):
    """Which text does each view of the main family get; all optional members are in ``members.OptionalPrompting``."""

    needs: ClassVar[frozenset[str]]

    @property
    def request(self) -> AttentionRequest | None:
        """The attention maps it wants remembered, if any."""

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: KeptMaps | None,
    ) -> tuple[str | None, ...]:
        """A text for each view.

        Args:
            step: Where the run stands.
            prompt: The run's.
            negative_prompt: The run's, None if it has none; it is the same in all views.
            views: Of the main family.
            canvas: Where they lie.
            memory: What earlier stages remembered; needs ``recalls = True``, else None.

        Returns:
            None for the prompt; or () if all have it.
        """


class Masking(Protocol):
    """Where does guidance act: a weight in [0, 1] per cell of the key view, or of the whole canvas.

    ``predicted.view`` is what the mask is wanted of, ``predicted.canvas`` where that lies. By default it is the key
    view, whose mask counts for all views. With ``knows_whole = True`` it is the whole canvas, once a step: every view
    gets its own cut, and guidance of the canvas can read it, too. With ``recalls = True`` it wants what earlier stages
    remembered. All optional members are in ``members.OptionalMasking``.
    """

    needs: ClassVar[frozenset[str]]

    @property
    def request(self) -> AttentionRequest | None:
        """The attention maps it wants, if any."""

    def init(self) -> Any:
        """State before the first step of a stage."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: Any) -> tuple[Tensor | None, Any]:
        """The mask, and the new state.

        Args:
            step: Where the run stands.
            key: The key view's prediction, also if the mask is of the whole canvas.
            predicted: What the network said of the key view, with what the mask is wanted of.
            state: Of the step before.

        Returns:
            Float32[Tensor, "batch 1 h w"] of ``predicted.view``, on the device of ``key.latents``, or None for
            everywhere; and the new state.
        """


class Guidance(Protocol):
    """How predictions, or the latents around them, are corrected.

    ``point`` says what ``guide`` receives and returns, in the order of a step:

    - ``before``: the latents, Float32[Tensor, "batch channels height width"];
    - ``inputs``: the latents of the main family's views, Float32[Tensor, "views batch channels h w"]; the canvas is
      then fused from them;
    - ``branches``: a ``Branches``, the CFG branches of the main family's views; one guidance a stage;
    - ``views``: the ``Prediction`` of the main family's views;
    - ``canvas``: the ``Prediction`` of the canvas;
    - ``after``: the latents after the scheduler's step.

    All optional members are in ``members.OptionalGuidance``, and those of guidance by messages in ``MessageGuidance``.
    """

    needs: ClassVar[frozenset[str]]
    point: ClassVar[Point]

    def init(self) -> Any:
        """State before the first step of a stage, at each size."""

    def guide(self, step: Step, subject: Any, scene: GuidanceContext, state: Any) -> tuple[Any, Any]:
        """The corrected subject and the new state."""


class MessageGuidance(Guidance, Protocol):
    """Guidance at "views" that reads the key view through one message, so that ranks need not gather views.

    ``guide`` must equal ``follow`` with the message of ``lag(step)`` steps before, which ``tell`` made.
    """

    def lag(self, step: Step) -> int | None:
        """Which message this step follows: 0 its own, 1 that of the step before; None if it follows none."""

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """The key view's message, Float32[Tensor, "batch channels+1 h w"]."""

    def follow(self, step: Step, subject: Prediction, key: int, message: Tensor | None) -> Prediction:
        """All views but the key view, corrected; None before the first message."""


class Fusion(Protocol):
    """How the views' predictions become the canvas's; all optional members are in ``members.OptionalFusion``."""

    needs: ClassVar[frozenset[str]]

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """The network output of the canvas.

        Args:
            step: Where the run stands.
            views: In canonical order.
            prediction: Of the views, Float32[Tensor, "views batch channels h w"].
            latents: The canvas, Float32[Tensor, "batch channels height width"].

        Returns:
            Float32[Tensor, "batch channels height width"].
        """
