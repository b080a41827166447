"""What a strategy of each slot answers. Strategies are frozen attrs classes; state goes in and comes out.

Shape legend: ``views`` views of one family, ``rows`` pairs of (view, CFG branch), ``batch`` pictures,
``channels`` latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from attrs import evolve, field, frozen

from vitrail.core.fields import as_tuple

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vitrail.core.exchange import Exchange
    from vitrail.core.inputs import Inputs
    from vitrail.core.noise_schedule import Scheduler
    from vitrail.core.prediction import Prediction
    from vitrail.core.run_config import Wrap
    from vitrail.core.step import Step
    from vitrail.core.streams import Streams
    from vitrail.core.views import Canvas, Patches, View

Point = Literal["views", "canvas", "before", "after"]
Branch = Literal["uncond", "cond"]
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
    """

    layers: tuple[int, ...] = ()
    skip_words: frozenset[str] = frozenset()
    kind: Literal["cross", "joint"] = "cross"
    words: tuple[str, ...] = ()
    over: Over = "mean"
    t5: bool = False


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
    """

    model_output: Tensor
    attention: Tensor | None = None
    has_content: bool = True
    layers: Mapping[int, Tensor] = field(factory=dict)

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
        )


class Backbone(Protocol):
    """A model: predicts rows at a timestep, encodes what they are conditioned on, decodes. Loaded from a spec."""

    latent_channels: int
    vae_scale_factor: int
    native_size: int  # latent cells of the side it was trained at
    max_view: int | None  # latent cells of the longest side it takes
    offers: frozenset[str]
    defaults: Mapping[str, Any]  # fields of a run that suit it

    @property
    def network(self) -> Any:
        """The denoiser, for temporary changes inside it; None if there is none to change."""

    def new_scheduler(self, name: str | None = None) -> Scheduler:
        """A fresh scheduler: the model's own, or another diffusers class with the same noise schedule."""

    def timestep_options(self, scheduler: Scheduler, height: int, width: int) -> dict[str, Any]:
        """What ``set_timesteps`` wants besides the number of steps, for latents of a size in cells."""

    def first_step(self, num_steps: int, strength: float) -> int:
        """How many steps are left out when a run starts from a picture."""

    def fingerprint(self) -> str:
        """Stands for the weights; alike on all ranks of a run."""

    def check_attention(self, request: AttentionRequest) -> None:
        """Refuse a request for attention maps that the network does not have."""

    def check_inputs(self, inputs: Inputs) -> None:
        """Refuse conditioning that the model cannot use."""

    def check_wrap(self) -> None:
        """Refuse edges that meet, if the decoder cannot draw them."""

    def condition(self, inputs: Inputs, request: AttentionRequest | None) -> Any:
        """Encode what a picture is conditioned on; handed back to ``predict``."""

    def predict(self, rows: Rows, step: Step, timestep: Tensor, conditioning: Any) -> Predicted:
        """One forward of the network. The only expensive line of a run."""

    def read_picture(self, picture: Any, height: int, width: int) -> Tensor:
        """A picture of any size in [-1, 1] at the wanted size, Float32[Tensor, "1 3 Height Width"]."""

    def encode(self, picture: Tensor, noise: Tensor) -> Tensor:
        """Latents of a picture in [-1, 1]; ``noise`` draws from the encoder's posterior."""

    def decode(self, latents: Tensor, exchange: Exchange, wrap: Wrap, backs_off: bool) -> Tensor:
        """A picture in [0, 1], Float32[Tensor, "1 3 Height Width"], on every rank; they may share the work."""

    def to_pil(self, pictures: Tensor) -> list[Image]:
        """The same as Pillow images."""

    def release(self) -> None:
        """The run is over: networks may go back to where they wait."""


@frozen(eq=False, kw_only=True)
class Forward:
    """One call of the network, as a rectification sees it.

    Attributes:
        network: The module that predicts.
        step: Where the run stands.
        rows: The micro-batch.
        native_size: Latent cells of the side that the network was trained at.
    """

    network: Any
    step: Step
    rows: Rows
    native_size: int


class Rectification(Protocol):
    """A temporary change inside the network, for a range of steps.

    It works by hooks on modules and is undone when the call is over, also if that raised. Ranks may be threads that
    share the network, so it must not act in the forward of another thread.
    """

    needs: ClassVar[frozenset[str]]

    def check(self, network: Any) -> None:
        """Refuse a network without the places that it changes, by CapabilityError; asked before any call."""

    def apply(self, forward: Forward) -> AbstractContextManager[object]:
        """A context in which the change is in force; in a step out of its range, one that does nothing."""


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
