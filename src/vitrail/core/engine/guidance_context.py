"""What lies around the subject of a guidance: masks, the canvas, what the phase began with, what may be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.micro_batch import Branch, SizeConditioning
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen(eq=False)
class Start:
    """What a phase began with: the grown picture and the noise that was added to it.

    Attributes:
        clean: Latents, Float32[Tensor, "batch channels height width"].
        noise: Standard normal, of the same shape; the same at every step.
        picture: The grown picture in [-1, 1], beyond it where sharpened, Float32[Tensor, "batch 3 Height Width"]; None
            if latents grew.
    """

    clean: Tensor
    noise: Tensor
    picture: Tensor | None = None

    def noised(self, step: Step) -> Tensor:
        """The grown latents at the noise of a step, in the scheduler's own form."""
        return step.alpha * self.clean + step.sigma * self.noise


class Ask(Protocol):
    """A question to the network besides the views: all ranks ask together and all get the answer."""

    def __call__(self, step: Step, model_input: Tensor, view: View, /, sizes: SizeConditioning | None = None) -> Tensor:
        """The network's output after classifier-free guidance, Float32[Tensor, "batch channels h w"].

        Args:
            step: With the timestep and scales that the input has.
            model_input: As the network wants it, Float32[Tensor, "batch channels h w"].
            view: What it shows of the canvas.
            sizes: What the network is told about sizes; the stage's if None.
        """


class Vae(Protocol):
    """The way between latents and pictures; every rank gets the same."""

    def decode(self, latents: Tensor, canvas: Canvas) -> Tensor:
        """A picture in [0, 1] without padding, Float32[Tensor, "batch 3 Height Width"]."""

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Mean latents of a picture in [-1, 1], Float32[Tensor, "batch channels height width"], padding included."""


class Gradients(Protocol):
    """How what views show follows from their latents; all ranks ask together and all get the answer."""

    def picture(self, step: Step, latents: Tensor, view: View) -> Tensor:
        """What a view's clean prediction shows, about in [-1, 1], Float32[Tensor, "batch 3 Height Width"].

        Args:
            step: Where the run stands.
            latents: Of the view, in the scheduler's own form, Float32[Tensor, "batch channels h w"].
            view: Where it lies.
        """

    def of_distance(
        self, step: Step, latents: Tensor, views: Sequence[View], picture: Tensor, weights: str | None
    ) -> Tensor:
        """The gradient of every view's perceptual distance to a picture with respect to its own latents.

        Args:
            step: Where the run stands.
            latents: Of the views, Float32[Tensor, "views batch channels h w"].
            views: Where they lie.
            picture: Of a view, as ``picture`` gives it.
            weights: File of the distance's weights; None for the distance that ships inside.

        Returns:
            Float32[Tensor, "views batch channels h w"].
        """


@frozen(eq=False, kw_only=True)
class GuidanceContext:
    """What a guidance may look at and ask for, besides its subject.

    Attributes:
        key: Index of the key view, at "views".
        mask: Where guidance acts, for one that says ``reads_mask``; None is everywhere. At "views" of the key view,
            Float32[Tensor, "batch 1 h w"], which counts for all; or, if the mask knows the whole picture, of every
            view, Float32[Tensor, "views batch 1 h w"]. At "canvas" of the canvas, if it knows the whole picture.
        patches: The views, at "inputs", "branches" and "views".
        canvas: Of the phase.
        streams: The run's randomness.
        start: What the phase began with; None in the first.
        ask: Puts a question to the network.
        step_at: The step of given scales (alpha, sigma) as the network knows it, in its own form and at its nearest
            training timestep; for questions about latents of another noise.
        exchange: The ranks, to share work of one's own.
        needs: What the guidance declares; None where nobody asks, as in a test.
        guidance: What it is called.
    """

    key: int = 0
    mask: Tensor | None = None
    patches: Patches | None = None
    canvas: Canvas | None = None
    streams: Streams | None = None
    start: Start | None = None
    ask: Ask | None = None
    step_at: Callable[[float, float], Step] | None = None
    exchange: Exchange | None = None
    needs: frozenset[str] | None = None
    guidance: str = "this guidance"
    _vae: Vae | None = None
    _gradients: Gradients | None = None

    @property
    def vae(self) -> Vae | None:
        """The way between latents and pictures, for a guidance with the need ``vae``; CapabilityError for others."""
        self._declared("vae")
        return self._vae

    @property
    def gradients(self) -> Gradients | None:
        """For a guidance with the need ``gradients``; CapabilityError for others."""
        self._declared("gradients")
        return self._gradients

    @property
    def key_mask(self) -> Tensor | None:
        """At "views": the mask of the key view, Float32[Tensor, "batch 1 h w"]."""
        masks = self.own_masks
        return self.mask if masks is None else masks[self.key]

    @property
    def own_masks(self) -> Tensor | None:
        """At "views": the mask of every view, Float32[Tensor, "views batch 1 h w"], if each has its own."""
        return self.mask if self.mask is not None and self.mask.ndim > 4 else None

    def _declared(self, need: str) -> None:
        if self.needs is not None and need not in self.needs:
            wanted = ", ".join(f'"{each}"' for each in sorted({need, *self.needs}))
            raise CapabilityError(
                f"{self.guidance} looks at {need!r} of its scene and does not declare that it needs it, so a model "
                f"without could be taken; declare it: needs = frozenset({{{wanted}}})"
            )


@frozen(eq=False)
class Branches:
    """The subject of guidance at "branches": what the network said of each CFG branch, and how they are combined.

    Attributes:
        rows: By branch, Float32[Tensor, "views batch channels h w"].
        guidance_scale: Of the run and the stage.
        combined: Classifier-free guidance as usual, of the same shape; what guidance replaces.
        latents: Of the views, of the same shape.
        guidance_rescale: Of the run; ``combined`` has it already.
    """

    rows: Mapping[Branch, Tensor]
    guidance_scale: float
    combined: Tensor
    latents: Tensor
    guidance_rescale: float = 0.0


def subject_tensor(subject: Tensor | Prediction | Branches) -> Tensor:
    """The tensor that guidance changes in its subject."""
    if isinstance(subject, Branches):
        return subject.combined
    output: Tensor | None = getattr(subject, "model_output", None)
    return subject if output is None else output  # type: ignore[return-value]
