"""Calls of a stage's guidance at the points of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.core.engine.gradients import CountedGradients
from vitrail.core.engine.guidance_context import GuidanceContext, subject_tensor
from vitrail.core.method.cost import Cost
from vitrail.core.method.members import points_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from vitrail.core.engine.asked import CanvasPart
    from vitrail.core.engine.backdrops import Backdrops
    from vitrail.core.engine.forwards import Forwards
    from vitrail.core.engine.gradients import ViewGradients
    from vitrail.core.engine.guidance_context import Subject, Vae
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.run_state import Sampled, Timings
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.micro_batch import Branch, SizeConditioning
    from vitrail.core.method.protocols import Guidance, Point
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen(eq=False)
class CountedVae:
    """A VAE whose calls are recorded in the timings."""

    vae: Vae
    timings: Timings

    def decode(self, latents: Tensor, canvas: Canvas, clip: bool = True) -> Tensor:
        """Decode to a picture; see ``Vae``."""
        self.timings.add(Cost(decodes=1))
        return self.vae.decode(latents, canvas, clip)

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Encode a picture in [-1, 1]; see ``Vae``."""
        self.timings.add(Cost(encodes=1))
        return self.vae.encode(picture, canvas)


@frozen(kw_only=True, eq=False)
class GuidancePoints:
    """Call the guidance of a stage with its context.

    Attributes:
        plan: What the run does.
        forwards: Calls of the network.
        streams: The run's random streams.
        backdrops: Noised plain colours.
        vae: None if the backbone has no VAE.
        gradients: For guidance that differentiates.
    """

    plan: RunPlan
    forwards: Forwards
    streams: Streams
    backdrops: Backdrops
    vae: Vae | None = None
    gradients: ViewGradients | None = None

    def acts_at(self, point: Point, step: Step) -> bool:
        """Whether a guidance of the step's stage acts at a point."""
        return any(point in points_of(guidance) for guidance in self.plan.stage(step).guidance)

    def at(
        self,
        point: Point,
        step: Step,
        subject: Subject,
        done: Sampled,
        patches: Patches | None = None,
        mask: Tensor | None = None,
    ) -> Subject:
        """Return the subject after all guidance at a point, and update its state.

        Args:
            point: See ``Guidance``.
            step: Position of the run.
            subject: Latents, branches or a prediction, see ``Guidance``.
            done: State of the picture.
            patches: Views of the main group, where the subject is about them.
            mask: Where guidance acts; None for everywhere.
        """
        state = done.state
        for number, guidance in enumerate(self.plan.stage(step).guidance):
            if point in points_of(guidance):
                scene = self._scene(point, step, done, guidance, patches, mask)
                subject, state.guidance[number] = self.plan.hooks.guide(
                    step, guidance, subject, scene, state.guidance[number]
                )
                state.nonfinite.add_guided(guidance, subject, patches)
                state.note(step, self.plan.hooks.who("guidance", step, guidance), subject_tensor(subject))
        return subject

    def counted_vae(self, timings: Timings) -> Vae | None:
        """Return the VAE with its calls recorded in ``timings``; None if there is none."""
        return None if self.vae is None else CountedVae(self.vae, timings)

    def vae_of_background(self, step: Step, timings: Timings) -> Vae | None:
        """Return the VAE, with its calls recorded where the plan counts them: a resumed run encodes a colour again."""
        return self.counted_vae(timings) if step.index == self.plan.background_from() else self.vae

    def _scene(
        self, point: Point, step: Step, done: Sampled, guidance: Guidance, patches: Patches | None, mask: Tensor | None
    ) -> GuidanceContext:
        def ask(asked: Step, model_input: Tensor, view: View, sizes: SizeConditioning | None = None) -> Tensor:
            return self.forwards.ask(self.plan, step, asked, model_input, view, sizes, done.timings)

        def ask_branches(
            asked: Step, model_input: Tensor, shown: Sequence[CanvasPart], sizes: SizeConditioning | None = None
        ) -> Mapping[Branch, Tensor]:
            return self.forwards.ask_branches(self.plan, step, asked, model_input, shown, sizes, done.timings)

        def background(shape: tuple[int, int]) -> Tensor:
            return self.backdrops.beyond(step, shape, done.latents, self.vae_of_background(step, done.timings))

        stepper = self.plan.phase(step).stepper
        return GuidanceContext(
            point=point,
            guidance_scale=self.plan.scale_at(step),
            guidance_rescale=self.plan.cfg.rescale,
            key=0 if patches is None else patches.key,
            mask=mask,
            patches=patches,
            canvas=self.plan.phase(step).canvas,
            streams=self.streams,
            start=done.state.start,
            ask=ask,
            ask_branches=ask_branches,
            scale=lambda latents: stepper.scale(latents, step.phase_step),
            background=background,
            step_at=lambda alpha, sigma: stepper.schedule.step_at(step, alpha, sigma),
            vae=self.counted_vae(done.timings),
            exchange=self.forwards.exchange,
            needs=frozenset(guidance.needs),
            guidance=type(guidance).__name__,
            gradients=None if self.gradients is None else CountedGradients(self.gradients, done.timings),
        )
