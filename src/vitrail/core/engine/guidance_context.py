"""Read-only context passed to every guidance: mask, key view, canvas, streams, callbacks to the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from attrs import frozen

from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.asked import CanvasPart
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.micro_batch import Branch, SizeConditioning
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Point, Step
    from vitrail.core.schedule.streams import Streams

Subject = TypeVar("Subject", bound="Tensor | Prediction | Branches")  # of a guidance, by its point


@frozen(eq=False)
class Start:
    """The beginning of a phase: the resized picture and the noise that was added to it.

    Attributes:
        clean: Latents of the resized picture, Float32[Tensor, "batch channels height width"].
        noise: Standard normal noise of the same shape; the same at every step.
        picture: The resized picture in [-1, 1], beyond it where sharpened, Float32[Tensor, "batch 3 Height Width"];
            None if latents were resized.
    """

    clean: Tensor
    noise: Tensor
    picture: Tensor | None = None

    def noised(self, step: Step) -> Tensor:
        """Return the resized latents with the noise of a step, in the scheduler's own form."""
        return step.alpha * self.clean + step.sigma * self.noise


class Ask(Protocol):
    """A question to the network besides the views; collective, with the answer on all ranks."""

    def __call__(self, step: Step, model_input: Tensor, view: View, /, sizes: SizeConditioning | None = None) -> Tensor:
        """Return the network's output after classifier-free guidance, Float32[Tensor, "batch channels h w"].

        Args:
            step: Step with the timestep and scales of the input.
            model_input: As the network expects it, Float32[Tensor, "batch channels h w"].
            view: The part of the canvas that it shows.
            sizes: Size conditioning; the stage's if None.
        """


class AskBranches(Protocol):
    """Questions to the network as ``Ask``, answered by branch; several are shared between the ranks."""

    def __call__(
        self, step: Step, model_input: Tensor, shown: Sequence[CanvasPart], /, sizes: SizeConditioning | None = None
    ) -> Mapping[Branch, Tensor]:
        """Return the network's output for every CFG branch, Float32[Tensor, "asked batch channels h w"] each.

        Args:
            step: Step with the timestep and scales of the inputs.
            model_input: As the network expects it, Float32[Tensor, "asked batch channels h w"].
            shown: The part of the canvas that each input shows; views of one shape and roll.
            sizes: Size conditioning; the stage's if None.
        """


class Vae(Protocol):
    """Encode and decode pictures; results are equal on all ranks."""

    def decode(self, latents: Tensor, canvas: Canvas, clip: bool = True) -> Tensor:
        """Return a picture without padding, Float32[Tensor, "batch 3 Height Width"].

        It lies in [0, 1], without ``clip`` about so, since decoders overshoot.
        """

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Return mean latents of a picture in [-1, 1], padded, Float32[Tensor, "batch channels height width"]."""


class Gradients(Protocol):
    """Pictures of views and gradients through them; collective, with results on all ranks."""

    def picture(self, step: Step, latents: Tensor, view: View) -> Tensor:
        """Return the picture of a view's clean prediction, in [-1, 1], Float32[Tensor, "batch 3 Height Width"].

        Args:
            step: Position of the run.
            latents: Latents of the view in the scheduler's own form, Float32[Tensor, "batch channels h w"].
            view: The part of the canvas that they show.
        """

    def of_distance(
        self, step: Step, latents: Tensor, views: Sequence[View], picture: Tensor, weights: str | None
    ) -> Tensor:
        """Return the gradient of every view's perceptual distance to a picture with respect to the view's latents.

        Args:
            step: Position of the run.
            latents: Latents of the views, Float32[Tensor, "views batch channels h w"].
            views: The parts of the canvas that they show.
            picture: Picture of a view, as ``picture`` returns it.
            weights: File of the distance's weights; None for the built-in distance.

        Returns:
            Float32[Tensor, "views batch channels h w"].
        """


@frozen(eq=False, kw_only=True)
class GuidanceContext:
    """Read-only context passed to every guidance: mask, key view, canvas, streams, callbacks to the network.

    Attributes:
        point: Where in the step the guidance is called.
        guidance_scale: Scale of classifier-free guidance at the step: of the run, times the factors of the stage.
        guidance_rescale: Rescale of the run.
        key: Index of the key view, at "views".
        mask: Where guidance with ``reads_mask = True`` acts; None for everywhere. At "views" the key view's mask,
            Float32[Tensor, "batch 1 h w"], for all views; or, if the mask covers the whole canvas, every view's crop,
            Float32[Tensor, "views batch 1 h w"]. At "canvas" the canvas's mask, if it covers the whole canvas.
        patches: The views, at "inputs", "branches" and "views".
        canvas: The canvas of the phase.
        streams: The run's random streams.
        start: Beginning of the phase; None in the first one.
        ask: Calls the network with other latents.
        ask_branches: The same, with the answers of the branches apart.
        scale: Latents of the step as the network expects them; not at "after", when the scheduler has stepped.
        background: A noised plain colour of a height and width in cells, Float32[Tensor, "1 channels h w"] in the
            scheduler's own form, for a guidance whose ``needs_background`` says so.
        step_at: The step with given scales (alpha, sigma), normalised as the network expects it, at the nearest
            training timestep; for questions about latents with another noise level.
        exchange: Moves tensors between ranks, to share the guidance's own work.
        needs: Needs that the guidance declares; None to skip the check, as in a test.
        guidance: Name of the guidance in messages.
    """

    point: Point = "canvas"
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0
    key: int = 0
    mask: Tensor | None = None
    patches: Patches | None = None
    canvas: Canvas | None = None
    streams: Streams | None = None
    start: Start | None = None
    ask: Ask | None = None
    ask_branches: AskBranches | None = None
    scale: Callable[[Tensor], Tensor] | None = None
    background: Callable[[tuple[int, int]], Tensor] | None = None
    step_at: Callable[[float, float], Step] | None = None
    exchange: Exchange | None = None
    needs: frozenset[str] | None = None
    guidance: str = "this guidance"
    _vae: Vae | None = None
    _gradients: Gradients | None = None

    @property
    def vae(self) -> Vae | None:
        """The VAE, for a guidance with the need ``vae``; CapabilityError for others."""
        self._declared("vae")
        return self._vae

    @property
    def gradients(self) -> Gradients | None:
        """Gradients of views, for a guidance with the need ``gradients``; CapabilityError for others."""
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
    """The subject of guidance at "branches": the output of each CFG branch, and how they are combined.

    Attributes:
        rows: Output by branch, Float32[Tensor, "views batch channels h w"].
        guidance_scale: Scale of the run times the factor of the stage.
        combined: Result of classifier-free guidance, of the same shape; guidance replaces it.
        latents: Latents of the views, of the same shape.
        guidance_rescale: Rescale of the run; already applied to ``combined``.
    """

    rows: Mapping[Branch, Tensor]
    guidance_scale: float
    combined: Tensor
    latents: Tensor
    guidance_rescale: float = 0.0


def subject_tensor(subject: Tensor | Prediction | Branches) -> Tensor:
    """Return the tensor of a subject that guidance changes."""
    if isinstance(subject, Branches):
        return subject.combined
    output: Tensor | None = getattr(subject, "model_output", None)
    return subject if output is None else output  # type: ignore[return-value]
