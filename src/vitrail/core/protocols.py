"""What a strategy of each slot answers. Strategies are frozen attrs classes; state goes in and comes out.

Shape legend: ``views`` views of one family, ``rows`` pairs of (view, CFG branch), ``batch`` pictures,
``channels`` latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from attrs import field, frozen

from vitrail.core.fields import as_tuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.exchange import Exchange
    from vitrail.core.noise_schedule import Scheduler
    from vitrail.core.prediction import Prediction
    from vitrail.core.step import Step
    from vitrail.core.streams import Streams
    from vitrail.core.views import Canvas, Patches, View

Point = Literal["views", "canvas", "before", "after"]
Branch = Literal["uncond", "cond"]


@frozen
class AttentionRequest:
    """Which cross-attention maps a mask source wants; the backbone reduces them to one map a view.

    Attributes:
        layers: Indices of up blocks that have cross-attention, counted from the deepest; empty for all.
        skip_words: Words that never count as content.
    """

    layers: tuple[int, ...] = ()
    skip_words: frozenset[str] = frozenset()


@frozen(eq=False)
class Rows:
    """One micro-batch for the network, in canonical order.

    Attributes:
        model_input: Scaled latents, Float32[Tensor, "rows*batch channels h w"].
        branches: The CFG branch of each row.
        views: The view of each row.
        capture: Indices of the rows whose attention maps are wanted.
    """

    model_input: Tensor
    branches: tuple[Branch, ...] = field(converter=as_tuple)
    views: tuple[View, ...] = field(converter=as_tuple)
    capture: tuple[int, ...] = field(converter=as_tuple, default=())


@frozen(eq=False)
class Predicted:
    """What the network said of a micro-batch.

    Attributes:
        model_output: Float32[Tensor, "rows*batch channels h w"].
        attention: Mean map of the content tokens for each captured row, at most 1,
            Float32[Tensor, "batch 1 h w"], or None if no row was captured.
        has_content: False if the prompt has no content token to look at.
    """

    model_output: Tensor
    attention: Tensor | None = None
    has_content: bool = True


class Backbone(Protocol):
    """A model: predicts rows at a timestep, encodes text, decodes latents. Loaded from a spec."""

    latent_channels: int
    vae_scale_factor: int
    native_size: int  # latent cells of the side it was trained at
    offers: frozenset[str]

    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """A fresh scheduler: the model's own, or another diffusers class with the same noise schedule."""

    def fingerprint(self) -> str:
        """Stands for the weights; alike on all ranks of a run."""

    def check_attention(self, request: AttentionRequest) -> None:
        """Refuse a request for attention maps that the network does not have."""

    def encode_prompt(self, prompt: str, negative_prompt: str, request: AttentionRequest | None) -> Any:
        """The conditioning of both branches, handed back to ``predict``."""

    def predict(self, rows: Rows, step: Step, timestep: Tensor, conditioning: Any) -> Predicted:
        """One forward of the network. The only expensive line of a run."""

    def decode(self, latents: Tensor, exchange: Exchange) -> Tensor:
        """A picture in [0, 1], Float32[Tensor, "1 3 Height Width"], on every rank; they may share the work."""

    def to_pil(self, pictures: Tensor) -> list[Image]:
        """The same as Pillow images."""


class Patching(Protocol):
    """Which views of the canvas does the network see at this step, and in which order of pixels."""

    needs: ClassVar[frozenset[str]]

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """The canvas is padded to multiples of these (height, width)."""

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """The views of this step; as many at every step of a stage."""


class Masking(Protocol):
    """Where does guidance act: a weight in [0, 1] per cell of the key view."""

    needs: ClassVar[frozenset[str]]

    @property
    def request(self) -> AttentionRequest | None:
        """The attention maps it wants, if any."""

    def init(self) -> Any:
        """State before the first step of a stage."""

    def mask(self, step: Step, key: Prediction, predicted: Predicted, state: Any) -> tuple[Tensor | None, Any]:
        """The mask, Float32[Tensor, "batch 1 h w"], or None for everywhere; and the new state."""


class Guidance(Protocol):
    """How predictions, or the latents before and after the step, are corrected.

    ``point`` says what ``guide`` receives and returns: the stacked ``Prediction`` of all views of the main
    family, Float32["views batch channels h w"] ("views"), the canvas's ``Prediction`` ("canvas"), or the
    latents ("before", "after"). ``key`` is the index of the key view; at the other points it is 0.
    """

    needs: ClassVar[frozenset[str]]
    point: ClassVar[Point]

    def init(self) -> Any:
        """State before the first step of a stage."""

    def guide(self, step: Step, subject: Any, key: int, mask: Tensor | None, state: Any) -> tuple[Any, Any]:
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
    """How the views' predictions become the canvas's."""

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
