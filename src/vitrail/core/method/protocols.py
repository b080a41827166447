"""What a strategy of each slot answers. Strategies are frozen attrs classes; state goes in and comes out.

Shape legend: ``views`` views of one family, ``rows`` pairs of (view, CFG branch), ``batch`` pictures,
``channels`` latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guidance_context import Memory, Scene
    from vitrail.core.geometry.size_conditioning import SizeConditioning
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

Point = Literal["before", "inputs", "branches", "views", "canvas", "after"]
Branch = Literal["uncond", "cond", "damped"]  # damped: as uncond, in a network that is rectified less
Over = Literal["mean", "max"]


@frozen
class AttentionRequest:
    """Which attention maps a mask source wants; the backbone reduces them to one map a view.

    Attributes:
        layers: Blocks of the network. ``cross``: up blocks that have cross-attention, counted from the deepest,
            empty for all; ``joint``: blocks of a transformer, empty for the late half. Negative ones count from
            the last.
        skip_words: Words that never count as content.
        kind: Attention to text only, or of picture and text to each other.
        words: Words and phrases of the prompt; if there are any, no others count as content.
        over: Whether the mean of the content tokens counts, or at each cell the largest.
        t5: With ``joint``: whether the tokens of the T5 encoder count beside those of the CLIP encoders.
        each: Whether a map of every word of the prompt is wanted besides; ``cross`` only.
    """

    layers: tuple[int, ...] = ()
    skip_words: frozenset[str] = frozenset()
    kind: Literal["cross", "joint"] = "cross"
    words: tuple[str, ...] = ()
    over: Over = "mean"
    t5: bool = False
    each: bool = False


@frozen(eq=False)
class Rows:
    """One micro-batch for the network, in canonical order.

    Attributes:
        model_input: Scaled latents, Float32[Tensor, "rows*batch channels h w"].
        branches: The CFG branch of each row.
        views: The view of each row.
        capture: Indices of the rows whose attention maps are wanted.
        texts: The prompt of each row; None for the run's, () for the run's in all.
        words: How many words' maps a captured row gives besides the mean of the content's.
        sizes: What the network is told about sizes; the stage's if None.
    """

    model_input: Tensor
    branches: tuple[Branch, ...] = field(converter=as_tuple)
    views: tuple[View, ...] = field(converter=as_tuple)
    capture: tuple[int, ...] = field(converter=as_tuple, default=())
    texts: tuple[str | None, ...] = field(converter=as_tuple, default=())
    words: int = 0
    sizes: SizeConditioning | None = None

    def pick(self, rows: Sequence[int]) -> Rows:
        """Some of the rows, in the order given."""
        batch = len(self.model_input) // len(self.views)
        entries = self.model_input.view(-1, batch, *self.model_input.shape[1:])
        return evolve(
            self,
            model_input=entries[list(rows)].flatten(0, 1),
            branches=[self.branches[row] for row in rows],
            views=[self.views[row] for row in rows],
            capture=[number for number, row in enumerate(rows) if row in self.capture],
            texts=[self.texts[row] for row in rows] if self.texts else (),
        )

    def cut(self, size: int) -> list[Rows]:
        """The same rows in parts of at most ``size``, each with its share of ``capture``."""
        batch = len(self.model_input) // len(self.views)
        return [
            evolve(
                self,
                model_input=self.model_input[begin * batch : (begin + size) * batch],
                branches=self.branches[begin : begin + size],
                views=self.views[begin : begin + size],
                capture=[row - begin for row in self.capture if begin <= row < begin + size],
                texts=self.texts[begin : begin + size],
            )
            for begin in range(0, len(self.views), size)
        ]


@frozen(eq=False)
class Predicted:
    """What the network said of a micro-batch.

    Attributes:
        model_output: Float32[Tensor, "rows*batch channels h w"].
        attention: Mean map of the content tokens for each captured row, at most 1,
            Float32[Tensor, "batch 1 h w"], or None if no row was captured.
        has_content: False if the prompt has no content token to look at.
        layers: The same map by block, for whoever looks at them; on the rank that captured.
        words: Maps of every word, Float32[Tensor, "batch words h w"], if they were wanted.
        memory: What earlier stages saw, for a mask source that says ``recalls``.
        view: For a mask: what it is wanted of, the key view or the whole canvas.
        canvas: For a mask: on which the view lies.
        inner: Height and width in cells of what is masked, without its padding; all of it if None.
    """

    model_output: Tensor
    attention: Tensor | None = None
    has_content: bool = True
    layers: Mapping[int, Tensor] = field(factory=dict)
    words: Tensor | None = None
    memory: Memory | None = None
    view: View | None = None
    canvas: Canvas | None = None
    inner: tuple[int, int] | None = None

    @classmethod
    def join(cls, parts: Sequence[Predicted]) -> Predicted:
        """What the parts of one micro-batch say together, in the order of ``Rows.cut``."""
        import torch

        maps = [part.attention for part in parts if part.attention is not None]
        return cls(
            torch.cat([part.model_output for part in parts]),
            torch.cat(maps) if maps else None,
            all(part.has_content for part in parts),
            next((part.layers for part in parts if part.layers), {}),
            next((part.words for part in parts if part.words is not None), None),
        )


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

    network: Any
    step: Step
    rows: Rows
    native_size: int
    streams: Streams


class Rectification(Protocol):
    """A temporary change inside the network, for a range of steps.

    It works by hooks on modules and is undone when the call is over, also if that raised. Ranks may be threads that
    share the network, so it must not act in the forward of another thread. All optional members are in
    ``members.OptionalRectification``.
    """

    needs: ClassVar[frozenset[str]]

    def check(self, network: Any) -> None:
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
        memory: Memory | None,
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

    def mask(self, step: Step, key: Prediction, predicted: Predicted, state: Any) -> tuple[Tensor | None, Any]:
        """The mask, and the new state.

        Args:
            step: Where the run stands.
            key: The key view's prediction, also if the mask is of the whole canvas.
            predicted: What the network said of the key view, with what the mask is wanted of.
            state: Of the step before.

        Returns:
            Float32[Tensor, "batch 1 h w"] of ``predicted.view``, or None for everywhere; and the new state.
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

    def guide(self, step: Step, subject: Any, scene: Scene, state: Any) -> tuple[Any, Any]:
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
