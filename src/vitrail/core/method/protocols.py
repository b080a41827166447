"""Protocols of the slots. Strategies are frozen attrs classes; state is passed in and returned.

Shape legend: ``views`` views of one group, ``rows`` pairs of (view, CFG branch), ``batch`` pictures, ``channels``
latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from attrs import frozen

from vitrail.core.schedule.step import Point as Point  # where authors of plugins look for it

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.core.engine.guidance_context import GuidanceContext
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.attention_maps import AttentionRequest, KeptMaps
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen(eq=False, kw_only=True)
class Forward:
    """One call of the network, as a rectification receives it.

    Attributes:
        network: The denoising network.
        step: Position of the run.
        rows: The micro-batch.
        native_size: Side of a training picture, latent cells.
        streams: The run's random streams, which do not depend on how rows are shared between ranks.
    """

    network: nn.Module | None
    step: Step
    rows: MicroBatch
    native_size: int
    streams: Streams


class Rectification(Protocol):
    """A temporary change inside the network, for a range of steps.

    It works by hooks on modules and is undone when the call ends, also by an exception. Ranks may be threads that share
    the network, so it must not act in the forward of another thread. All optional members are in
    ``members.OptionalRectification``.
    """

    needs: ClassVar[frozenset[str]]

    def check(self, network: nn.Module | None) -> None:
        """Raise CapabilityError for a network without the modules that it changes; called before any forward."""

    def apply(self, forward: Forward) -> AbstractContextManager[object]:
        """Return a context in which the change is active; outside its range of steps the context does nothing."""


class Patching(Protocol):
    """Choose the views of the canvas that the network sees at a step, and the order of pixels in them.

    All optional members are in ``members.OptionalPatching``.
    """

    needs: ClassVar[frozenset[str]]

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """Return the (height, width), in cells, to whose multiples the canvas is padded."""

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """Return the views of a step; their number is the same at every step of a stage.

        Args:
            step: Position of the run.
            canvas: The canvas, padding included.
            channels: Number of latent channels, for a permutation per channel.
            streams: The run's random streams.
        """


class Prompting(Protocol):
    """Choose the text of each view of the main group; all optional members are in ``members.OptionalPrompting``."""

    needs: ClassVar[frozenset[str]]

    @property
    def request(self) -> AttentionRequest | None:
        """Attention maps that an earlier stage must keep, if any."""

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: KeptMaps | None,
    ) -> tuple[str | None, ...]:
        """Return a text for each view.

        Args:
            step: Position of the run.
            prompt: The run's prompt.
            negative_prompt: The run's negative prompt, None if it has none; it is the same in all views.
            views: Views of the main group.
            canvas: The canvas that they lie on.
            memory: Attention maps kept by earlier stages; None without ``recalls = True``.

        Returns:
            A text per view, None for the prompt; or () if all views have the prompt.
        """


class Masking(Protocol):
    """Choose where guidance acts: a weight in [0, 1] per cell of the key view, or of the whole canvas.

    ``predicted.view`` is the view to mask, ``predicted.canvas`` the canvas that it lies on. By default that is the key
    view, whose mask counts for all views. With ``knows_whole = True`` it is the whole canvas, once per step: the mask
    is cropped for every view, and guidance of the canvas can read it, too. With ``recalls = True`` the source gets the
    attention maps that earlier stages kept. All optional members are in ``members.OptionalMasking``.
    """

    needs: ClassVar[frozenset[str]]

    @property
    def request(self) -> AttentionRequest | None:
        """Attention maps that the source needs, if any."""

    def init(self) -> Any:
        """Return the state before the first step of a stage."""

    def mask(self, step: Step, key: Prediction, predicted: ModelOutput, state: Any) -> tuple[Tensor | None, Any]:
        """Compute the mask and the new state.

        Args:
            step: Position of the run.
            key: The key view's prediction, also if the mask is of the whole canvas.
            predicted: Model output of the key view, with the view to mask.
            state: State after the step before.

        Returns:
            Float32[Tensor, "batch 1 h w"] of ``predicted.view``, on the device of ``key.latents``, or None for
            everywhere; and the new state.
        """


class Guidance(Protocol):
    """Correct predictions, or the latents before or after them.

    ``point`` says what ``guide`` receives and returns, in the order of a step:

    - ``before``: the latents, Float32[Tensor, "batch channels height width"];
    - ``inputs``: the latents of the main group's views, Float32[Tensor, "views batch channels h w"]; the canvas is
      then fused from them;
    - ``branches``: a ``Branches``, the CFG branches of the main group's views; one guidance per stage;
    - ``views``: the ``Prediction`` of the main group's views;
    - ``canvas``: the ``Prediction`` of the canvas;
    - ``after``: the latents after the scheduler's step.

    A guidance may act at further points of a step, with one state: ``also_at``, and ``scene.point`` says which it is.
    One that adds the branches of classifier-free guidance itself may limit those that views are asked with,
    ``views_branches``, and ask for others by ``scene.ask_branches``. All optional members are in
    ``members.OptionalGuidance``, and those of guidance by messages in ``MessageGuidance``.
    """

    needs: ClassVar[frozenset[str]]
    point: ClassVar[Point]

    def init(self) -> Any:
        """Return the state before the first step of a stage, at each size."""

    def guide(self, step: Step, subject: Any, scene: GuidanceContext, state: Any) -> tuple[Any, Any]:
        """Return the corrected subject and the new state.

        Args:
            step: Position of the run.
            subject: Latents, branches or a prediction, as ``point`` says.
            scene: Read-only context: mask, key view, canvas, streams, callbacks to the network.
            state: State after the step before.
        """


class MessageGuidance(Guidance, Protocol):
    """Guidance at "views" that reads the key view through one message, so that ranks need not gather views.

    ``guide`` must equal ``follow`` with the message that ``tell`` made ``lag(step)`` steps before. Where the next
    step's lag is 1, the state that ``guide`` returns must be this step's message: a resumed run takes it as such.
    """

    def lag(self, step: Step) -> int | None:
        """Return the age of the message to apply: 0 for this step's, 1 for that of the step before; None for none."""

    def tell(self, step: Step, subject: Prediction, key: int, mask: Tensor | None) -> Tensor:
        """Return the key view's message, Float32[Tensor, "batch channels+1 h w"].

        Args:
            step: Position of the run.
            subject: Prediction that includes the key view.
            key: Index of the key view in ``subject``.
            mask: Where guidance acts, Float32[Tensor, "batch 1 h w"]; None for everywhere.
        """

    def follow(self, step: Step, subject: Prediction, key: int, message: Tensor | None) -> Prediction:
        """Correct all views except the key view.

        Args:
            step: Position of the run.
            subject: Prediction of the views, Float32[Tensor, "views batch channels h w"]; on one of several ranks only
                that rank's views are meaningful.
            key: Index of the key view in ``subject``.
            message: As ``tell`` returned it; None before the first message.
        """


class Upscaler(Protocol):
    """Enlarge a picture, in pixels; all optional members are in ``members.OptionalUpscaler``.

    One rank asks, and the others receive its answer. Where a picture's ends meet, it is handed over with ``reach``
    pixels of what lies across them on either side, so an upscaler need not know.
    """

    needs: ClassVar[frozenset[str]]

    def upscale(self, picture: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the picture at another size.

        Args:
            picture: In [0, 1], Float32[Tensor, "batch 3 h w"], not to be written into; its device is the run's.
            size: Height and width of the result, pixels, which need be no multiple of the picture's.

        Returns:
            Float32[Tensor, "batch 3 *size"] in [0, 1], on the same device.
        """


class Fusion(Protocol):
    """Combine the views' predictions to the canvas's; all optional members are in ``members.OptionalFusion``."""

    needs: ClassVar[frozenset[str]]

    def fuse(self, step: Step, views: Sequence[View], prediction: Prediction, latents: Tensor) -> Tensor:
        """Return the network output of the canvas.

        Args:
            step: Position of the run.
            views: In canonical order.
            prediction: Of the views, Float32[Tensor, "views batch channels h w"].
            latents: The canvas, Float32[Tensor, "batch channels height width"].

        Returns:
            Float32[Tensor, "batch channels height width"].
        """
