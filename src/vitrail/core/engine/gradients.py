"""Gradients through network and decoder: predictions and pictures of views that can be differentiated.

One view with its CFG branches at a time, whatever the number of ranks or rows per forward: so memory holds the
activations of a single view, and a gradient is the same on any rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import define, field, frozen

from vitrail.core.engine.asked import CanvasPart
from vitrail.core.engine.forwards import answer, question
from vitrail.core.engine.memory_backoff import is_out_of_memory, let_go
from vitrail.core.method.cost import Cost
from vitrail.core.schedule.prediction import Prediction
from vitrail.errors import OutOfMemory

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.forwards import Forwards
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.run_state import Timings
    from vitrail.core.geometry.views import View
    from vitrail.core.schedule.step import Step

REMEDIES = "a smaller dtype (--dtype bfloat16), smaller views, or a method that does not differentiate"


class Distance(Protocol):
    """A perceptual distance between pictures."""

    def features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of pictures in [-1, 1], Float32[Tensor, "batch 3 Height Width"]."""

    def between(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Return the distance of each picture to its counterpart, Float32[Tensor, "batch"]."""


@define(eq=False)
class ViewGradients:
    """Gradients of views on this rank; decoder and distances are made on first use.

    Attributes:
        plan: What the run does.
        forwards: This rank's calls of the network.
        new_decoder: Make a differentiable decoder, from clean latents to a picture in [-1, 1].
        new_distance: Make a perceptual distance from the file of its weights, None for the built-in one.
    """

    plan: RunPlan
    forwards: Forwards
    new_decoder: Callable[[], Callable[[Tensor], Tensor]]
    new_distance: Callable[[str | None], Distance]
    _decode: Callable[[Tensor], Tensor] | None = None
    _distances: dict[str | None, Distance] = field(factory=dict)

    def picture(self, clean: Tensor) -> Tensor:
        """Decode clean latents to a picture clipped to [-1, 1], Float32[Tensor, "batch 3 Height Width"].

        Colours beyond have no gradient, as in SyncDiffusion's code; distances are made for pictures in that range.
        """
        if self._decode is None:
            self._decode = self.new_decoder()
        return self._decode(clean).clamp(-1, 1)

    def distance(self, weights: str | None) -> Distance:
        """Return the perceptual distance of a file of weights, None for the built-in one; cached."""
        if weights not in self._distances:
            self._distances[weights] = self.new_distance(weights)
        return self._distances[weights]

    def clean(self, step: Step, latents: Tensor, view: View, timings: Timings) -> Tensor:
        """Predict a view's clean latents on this rank.

        Args:
            step: Position of the run.
            latents: Latents of the view, Float32[Tensor, "batch channels h w"].
            view: The part of the canvas that they show.
            timings: Record of this rank's work, updated.

        Returns:
            Float32[Tensor, "batch channels h w"].
        """
        shown = self.plan.phase(step).stepper.scale(latents, step.phase_step)
        asked = [CanvasPart(view)]
        batches = question(self.plan, step, shown[None], asked, None)
        answers = [self.forwards.forward(step, rows, timings) for rows in batches]
        return Prediction(latents, answer(self.plan, step, answers, len(latents), asked), step).clean


@frozen(eq=False)
class CountedGradients:
    """The gradients of a run, with their cost recorded; see ``guidance_context.Gradients``."""

    gradients: ViewGradients
    timings: Timings

    def picture(self, step: Step, latents: Tensor, view: View) -> Tensor:
        """Return the picture of a view's clean prediction, as ``guidance_context.Gradients.picture``.

        Args:
            step: Position of the run.
            latents: Latents of the view, Float32[Tensor, "batch channels h w"].
            view: The part of the canvas that they show.

        Returns:
            Float32[Tensor, "batch 3 Height Width"], in [-1, 1].
        """
        import torch

        self._count(step, [view])
        with torch.no_grad():
            return self.gradients.picture(self.gradients.clean(step, latents, view, self.timings))

    def of_distance(
        self, step: Step, latents: Tensor, views: Sequence[View], picture: Tensor, weights: str | None
    ) -> Tensor:
        """Return the gradient of every view's distance to a picture; collective.

        Args:
            step: Position of the run.
            latents: Latents of the views, Float32[Tensor, "views batch channels h w"].
            views: The parts of the canvas that they show.
            picture: Picture of a view, Float32[Tensor, "batch 3 Height Width"].
            weights: File of the distance's weights; None for the built-in one.

        Returns:
            Float32[Tensor, "views batch channels h w"].
        """
        import torch

        self._count(step, views)
        self.timings.add(Cost(gradients=len(views)))
        exchange, distance = self.gradients.forwards.exchange, self.gradients.distance(weights)
        owner = {number: number % exchange.world_size for number in range(len(views))}
        with torch.no_grad():
            wanted = distance.features(picture)
        mine = {
            number: self._gradient(step, latents[number], view, distance, wanted)
            for number, view in enumerate(views)
            if owner[number] == exchange.rank
        }
        like = {number: torch.empty_like(latents[number], device="meta") for number in owner}
        every = exchange.gather(mine, like, owner)
        return torch.stack([every[number].to(latents.device) for number in owner])

    def _count(self, step: Step, views: Sequence[View]) -> None:
        """Record a forward of all branches and texts, and a decoded picture, per view, whichever rank computes it."""
        plan = self.gradients.plan
        own, texts = plan.own_branches(step), plan.regions.count_present(plan.phase(step).canvas)
        cells = [view.shape[0] * view.shape[1] for view in views]
        rows = [Cost(rows={each: len(own) * texts}, decodes=1) for each in cells]
        beside = plan.cost_beside(step, [(branch, each, texts) for each in cells for branch in own])
        self.timings.add(Cost.total([*rows, beside]))

    def _gradient(
        self, step: Step, latents: Tensor, view: View, distance: Distance, wanted: Sequence[Tensor]
    ) -> Tensor:
        """Return one view's gradient; an allocation failure becomes OutOfMemory with a remedy."""
        try:
            return self._differentiated(step, latents, view, distance, wanted)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            let_go(error)
            reason = str(error).partition("\n")[0]
        height, width = view.shape
        what = f"a view of {height}x{width} latent cells was differentiated"
        raise OutOfMemory(f"out of memory at step {step.index + 1}, as {what}: {reason}; try {REMEDIES}")

    def _differentiated(
        self, step: Step, latents: Tensor, view: View, distance: Distance, wanted: Sequence[Tensor]
    ) -> Tensor:
        """Backpropagate in two parts: through the decoder, then through the network.

        In between, the gradient is scaled to about 1 by a power of two, which is exact and keeps small values from
        vanishing in a half-precision network.
        """
        import torch

        with torch.enable_grad():
            moved = latents.detach().requires_grad_()
            clean = self.gradients.clean(step, moved, view, self.timings)
            shown = clean.detach().requires_grad_()
            apart = distance.between(distance.features(self.gradients.picture(shown)), wanted)
            (back,) = torch.autograd.grad(apart.sum(), shown)
            size = torch.exp2(back.abs().amax().clamp_min(torch.finfo(back.dtype).tiny).log2().floor())
            (gradient,) = torch.autograd.grad(clean, moved, back / size)
        return gradient * size
