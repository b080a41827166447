"""A stage's guidance at the points of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from vitrail.core.engine.gradients import CountedGradients
from vitrail.core.engine.guidance_context import GuidanceContext, subject_tensor
from vitrail.core.method.cost import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.forwards import Forwards
    from vitrail.core.engine.gradients import ViewGradients
    from vitrail.core.engine.guidance_context import Vae
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.run_state import Sampled, Timings
    from vitrail.core.geometry.views import Canvas, Patches, View
    from vitrail.core.method.protocols import Guidance, Point
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen(eq=False)
class CountedVae:
    """A VAE whose calls are counted."""

    vae: Vae
    timings: Timings

    def decode(self, latents: Tensor, canvas: Canvas) -> Tensor:
        """A picture in [0, 1]; see ``Vae``."""
        self.timings.add(Cost(decodes=1))
        return self.vae.decode(latents, canvas)

    def encode(self, picture: Tensor, canvas: Canvas) -> Tensor:
        """Latents of a picture in [-1, 1]; see ``Vae``."""
        self.timings.add(Cost(encodes=1))
        return self.vae.encode(picture, canvas)


@frozen(kw_only=True, eq=False)
class GuidancePoints:
    """Calls the guidance of a stage with what it may look at and ask for.

    Attributes:
        plan: The run.
        forwards: Answer questions to the network.
        streams: The run's randomness.
        vae: None if there is no such thing.
        gradients: For guidance that differentiates.
    """

    plan: RunPlan
    forwards: Forwards
    streams: Streams
    vae: Vae | None = None
    gradients: ViewGradients | None = None

    def acts_at(self, point: Point, step: Step) -> bool:
        """Whether a guidance of the step's stage acts at a point."""
        return any(guidance.point == point for guidance in self.plan.stage(step).guidance)

    def at(
        self,
        point: Point,
        step: Step,
        subject: Any,
        done: Sampled,
        patches: Patches | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """The subject after all guidance at a point, whose state is renewed.

        Args:
            point: See ``Guidance``.
            step: Where the run stands.
            subject: What is corrected.
            done: How far the run has come.
            patches: The main family's views, where the subject is about them.
            mask: Where guidance acts.
        """
        state = done.state
        for number, guidance in enumerate(self.plan.stage(step).guidance):
            if guidance.point == point:
                scene = self._scene(step, done, guidance, patches, mask)
                subject, state.guidance[number] = self.plan.hooks.guide(
                    step, guidance, subject, scene, state.guidance[number]
                )
                state.nonfinite.add_guided(guidance, subject, patches)
                state.note(step, self.plan.hooks.who("guidance", step, guidance), subject_tensor(subject))
        return subject

    def counted_vae(self, timings: Timings) -> Vae | None:
        """The VAE; its calls go into the timings."""
        return None if self.vae is None else CountedVae(self.vae, timings)

    def _scene(
        self, step: Step, done: Sampled, guidance: Guidance, patches: Patches | None, mask: Tensor | None
    ) -> GuidanceContext:
        def ask(asked: Step, model_input: Tensor, view: View, sizes: Any = None) -> Tensor:
            return self.forwards.ask(self.plan, asked, model_input, view, sizes, done.timings)

        schedule = self.plan.phase(step).stepper.schedule
        return GuidanceContext(
            key=0 if patches is None else patches.key,
            mask=mask,
            patches=patches,
            canvas=self.plan.phase(step).canvas,
            streams=self.streams,
            start=done.state.start,
            ask=ask,
            step_at=lambda alpha, sigma: schedule.step_at(step, alpha, sigma),
            vae=self.counted_vae(done.timings),
            exchange=self.forwards.exchange,
            needs=frozenset(guidance.needs),
            guidance=type(guidance).__name__,
            gradients=None if self.gradients is None else CountedGradients(self.gradients, done.timings),
        )
