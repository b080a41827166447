"""The loop: one formula, one scheduler step per timestep on the canvas.

    noise prediction of the canvas = fuse(guide(predict(views of the latents), mask))

Everything but ``predict`` is cheap and the same on every rank; which micro-batches are predicted where is a
plan and does not reach the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from vitrail.core.config.log import logger
from vitrail.core.engine.assembly import mix_families
from vitrail.core.engine.exchange import Control, Exchange
from vitrail.core.engine.layout import Layout
from vitrail.core.engine.nonfinite import SCHEDULER, Trail
from vitrail.core.engine.rank_comparison import Unison
from vitrail.core.engine.relay import Relay, can_relay, message_guidance
from vitrail.core.engine.resize import grow, grown_latents, moments, renormalised
from vitrail.core.engine.run_state import Sampled, Timings
from vitrail.core.engine.viewing import Viewing
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.checkpoint import Checkpoints
    from vitrail.core.method.protocols import Branch
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen(kw_only=True, eq=False)
class Engine(Layout):
    """Runs a composition over a canvas, or over several that grow.

    Attributes:
        streams: The run's randomness.
        viewing: From the canvas to predictions of views.
        exchange: The ranks of the run.
        watched: Whether somebody looks at the canvas after every step, so that it must be whole.
        cell: Pixels of a latent cell's side, for messages.
    """

    streams: Streams
    viewing: Viewing
    exchange: Exchange
    watched: bool = False
    cell: int = 1

    def run(
        self,
        latents: Tensor,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step, Tensor], Tensor],
        checkpoints: Checkpoints | None = None,
        guidance: Callable[[], tuple[float, float]] | None = None,
    ) -> Sampled:
        """Sample.

        Args:
            latents: Noise at the first step's scale, Float32[Tensor, "batch channels height width"].
            should_stop: Asked before every step; with several ranks, rank 0's answer of the step before counts.
            on_step: May replace the latents after a step, alike on all ranks.
            checkpoints: Where to go on from and what to keep, if anything.
            guidance: Asked after ``on_step`` for the guidance scale and rescale from the next step on, alike on all
                ranks; None if they stay.

        Returns:
            How far it came: all steps, unless it was stopped.
        """
        done = Sampled(latents, self.first) if checkpoints is None else checkpoints.resume(self, latents)
        begin, steps, control = time.perf_counter(), self.steps(), Control(self.exchange)
        done.state.unison = Unison(self.exchange)
        engine = self
        for step in steps[done.steps :]:
            if control.decide(should_stop()):
                logger().info("run.interrupted", step=step.index)
                self._gather(done)
                if checkpoints is not None and done.steps > self.first and done.entered:
                    checkpoints.keep(self, steps[done.steps - 1], done)
                break
            self.exchange.communicator.note(f"step {step.index + 1} of {len(steps)}")
            self._enter(step, done)
            with _logged(step, done.timings):
                done.latents, done.prediction = engine.step(step, done)
            if self.watched:  # so that who looks at the canvas is not blamed for what came before
                done.state.compare()
            done.latents, done.steps = on_step(step, done.latents), step.index + 1
            engine = engine if guidance is None else engine.guided(*guidance())
            due = checkpoints is not None and checkpoints.is_due(step)
            if due or step.stage_step + 1 == step.stage_num_steps:
                self._gather(done)
            if step.index + 1 == len(steps) or steps[step.index + 1].phase != step.phase:
                self._leave(step, done)
            if due and checkpoints is not None:
                done.state.compare()
                checkpoints.keep(self, step, done)
            done.timings.total_s = time.perf_counter() - begin
        done.state.compare()  # before anything is shown or kept
        return done

    def guided(self, guidance_scale: float, guidance_rescale: float) -> Engine:
        """The same run with other classifier-free guidance; a scale of 1 or less leaves the text's branch alone.

        Args:
            guidance_scale: Of the difference between the branches; above 1 only if both are encoded.
            guidance_rescale: Share of the contrast that is undone.
        """
        predictor, layout, guiding = self.viewing.predictor, self.viewing.layout, self.viewing.guiding
        if (predictor.guidance_scale, predictor.guidance_rescale) == (guidance_scale, guidance_rescale):
            return self
        branches: tuple[Branch, ...] = ("uncond", "cond") if guidance_scale > 1 else ("cond",)
        layout = evolve(layout, branches=branches)
        predictor = evolve(
            predictor, branches=branches, guidance_scale=guidance_scale, guidance_rescale=guidance_rescale
        )
        gradients = guiding.gradients
        gradients = None if gradients is None else evolve(gradients, layout=layout, predictor=predictor)
        guiding = evolve(guiding, layout=layout, predictor=predictor, gradients=gradients)
        viewing = evolve(self.viewing, layout=layout, predictor=predictor, guiding=guiding)
        return evolve(self, branches=branches, viewing=viewing)

    def shown(self, done: Sampled) -> Tensor:
        """What a run that was stopped has to show: its clean prediction, grown to the wanted size."""
        prediction = done.prediction
        phase = self.phases[0 if prediction is None else prediction.step.phase]
        clean = done.latents if prediction is None else prediction.clean
        return clean if phase is self.phases[-1] else grown_latents(clean, phase.canvas, self.canvas)

    def _enter(self, step: Step, done: Sampled) -> None:
        """Before the first step of a phase, a stage, or of a run that goes on."""
        stage, state = self.composition.stages[step.stage], done.state
        fresh = (state.phase, state.stage) != (step.phase, step.stage)
        if not fresh and done.entered:
            return
        if step.phase > max(0, state.phase):
            self._grow(step, done)
        done.entered = True
        if fresh:
            state.phase, state.stage, state.masking = step.phase, step.stage, stage.masking.init()
            state.guidance = [guidance.init() for guidance in stage.guidance]
        state.relay = None
        if self.can_relay(step):
            guidance = message_guidance(stage)
            told = state.guidance[0] if guidance and not fresh else None
            first, told_by = self.patches(step)[0], guidance[0] if guidance else None
            state.note(step, self.stages.who("patching", step, stage.patching), first.views)
            state.note(step, "the picture so far", done.latents)
            state.compare()  # the last time before the canvas is whole again
            state.relay = Relay(self.exchange, first, told_by, self.branches, step.index, told)

    def _grow(self, step: Step, done: Sampled) -> None:
        """Take the picture so far to the size of a phase that begins."""
        phase, before = self.phases[step.phase], self.phases[step.phase - 1]
        with self.exchange.communicator.trace.span("compute", f"to {phase.picture}"):
            start = grow(done.latents, before, phase, self.viewing.guiding.counted_vae(done.timings), self.streams)
        done.state.start = start
        done.latents = phase.stepper.noised(start.clean, start.noise, phase.first)

    def _leave(self, step: Step, done: Sampled) -> None:
        """After the last step of a phase: what later ones take over from the first."""
        phase, state = self.phases[step.phase], done.state
        if phase.enter is None:
            state.base = moments(done.latents, phase.canvas)
        elif phase.enter.renormalise:
            assert state.base is not None
            done.latents = renormalised(done.latents, state.base, phase.canvas)

    def can_relay(self, step: Step) -> bool:
        """Whether ranks do a step's stage without collectives, each on its own views."""
        phase = self.phases[step.phase]
        works_by_cell = phase.stepper.works_by_cell
        if self.exchange.is_alone or self.watched or not works_by_cell or self.stages.watches_canvas:
            return False
        steps = [each for each in self.steps() if (each.phase, each.stage) == (step.phase, step.stage)]
        stage = self.composition.stages[step.stage]
        return can_relay(stage, phase.canvas, (self.patches(each)[0] for each in steps))

    def _gather(self, done: Sampled) -> None:
        """Make the canvas whole on every rank, if each had only its own cells."""
        if done.state.relay is None or done.prediction is None:
            return
        prediction = done.prediction
        stepper = self.phases[prediction.step.phase].stepper
        whole = [done.latents, prediction.latents, prediction.model_output, *stepper.canvases(done.latents)]
        done.state.relay.gather(list({id(tensor): tensor for tensor in whole}.values()))
        assert done.state.unison is not None
        done.state.unison.note(prediction.step, "the views of all ranks", done.latents)

    def step(self, step: Step, done: Sampled) -> tuple[Tensor, Prediction]:
        """One step of the run: the new latents and the prediction that led there; renews the strategies' state."""
        stage, state, guiding = self.composition.stages[step.stage], done.state, self.viewing.guiding
        state.trail = Trail(self.cell)
        state.trail.add("what it began with", done.latents, "look at the callback, or at the latents that were given")
        state.note(step, "the picture so far", done.latents)
        latents = guiding.at("before", step, done.latents, done)
        latents, families = self.viewing.predictions(step, latents, done)
        outputs = []
        for family, (patches, views) in enumerate(families):
            outputs.append(self.stages.fuse(step, patches.views, views, latents, family))
            state.trail.add(f"fusion of family {family}", outputs[-1], "look at its weights")
            fusion = stage.fusion if family == 0 else stage.also[family - 1].fusion
            state.note(step, self.stages.who("fusion", step, fusion), outputs[-1])
        prediction = Prediction(latents, mix_families(outputs, stage.also, step), step)
        prediction = guiding.at("canvas", step, prediction, done, mask=self.viewing.mask_of_canvas(step, state))
        noise = self.streams.generator("step-noise", step.index)
        latents = self.phases[step.phase].stepper.step(prediction.model_output, step.phase_step, latents, noise)
        state.trail.add("the scheduler's step", latents, SCHEDULER)
        state.note(step, "the scheduler", latents)
        latents = guiding.at("after", step, latents, done)
        state.trail.check_sync(step, latents)
        self.stages.step_end(step, latents, prediction)
        return latents, prediction


@contextmanager
def _logged(step: Step, timings: Timings) -> Iterator[None]:
    started, rows = time.perf_counter(), timings.rows
    yield
    logger().debug(
        "step.finished",
        step=step.index,
        timestep=step.timestep,
        stage=step.stage,
        duration_ms=round(1000 * (time.perf_counter() - started), 3),
        rows=timings.rows - rows,
    )
