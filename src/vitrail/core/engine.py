"""The loop: one formula, one scheduler step per timestep on the canvas.

    noise prediction of the canvas = fuse(guide(predict(views of the latents), mask))

Everything but ``predict`` is cheap and the same on every rank; which micro-batches are predicted where is a
plan and does not reach the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from vitrail.comm.in_process import solo
from vitrail.core.assembly import combine_branches, gather_views, mix_families, permute_views, restore_order, split_rows
from vitrail.core.exchange import Control, Exchange
from vitrail.core.forwarding import Forwarding
from vitrail.core.log import logger
from vitrail.core.noise_schedule import Stepper
from vitrail.core.prediction import Prediction
from vitrail.core.protocols import Predicted, Rows
from vitrail.core.relay import Relay, can_relay, message_guidance
from vitrail.core.run_state import RunState, Sampled, Timings
from vitrail.core.step import Step
from vitrail.core.trail import SCHEDULER, Trail

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.checkpoint import Checkpoints
    from vitrail.core.composition import Composition
    from vitrail.core.protocols import Branch, MessageGuidance
    from vitrail.core.stages import Stages
    from vitrail.core.streams import Streams
    from vitrail.core.views import Canvas, Patches


@frozen(kw_only=True)
class Engine:
    """Runs a composition over a canvas.

    Attributes:
        composition: Stages with strategies.
        stages: The run's hooks.
        stepper: The scheduler, set for this run.
        canvas: Size in latent cells.
        streams: The run's randomness.
        branches: ``("uncond", "cond")``, or only ``("cond",)`` with guidance off.
        guidance_scale: Classifier-free guidance scale.
        row_batch: Rows a forward, at most.
        guidance_rescale: Share of the guided contrast that is set back to the conditional's.
        first: The step to begin at; more than 0 if the run starts from a picture.
        exchange: The ranks of the run.
        watched: Whether somebody looks at the canvas after every step, so that it must be whole.
        forwarding: This rank's forwards, and what was learnt of its memory.
        cell: Pixels of a latent cell's side, for messages.
    """

    composition: Composition
    stages: Stages
    stepper: Stepper
    canvas: Canvas
    streams: Streams
    branches: tuple[Branch, ...]
    guidance_scale: float
    row_batch: int
    guidance_rescale: float = 0.0
    first: int = 0
    exchange: Exchange = field(factory=lambda: Exchange.among(solo()))
    watched: bool = False
    forwarding: Forwarding = field(factory=Forwarding)
    cell: int = 1

    def steps(self) -> list[Step]:
        """Every step of the run, with the stage it belongs to."""
        schedule = self.stepper.schedule
        return schedule.steps(self.composition.boundaries(len(schedule.timesteps)))

    def patches(self, step: Step) -> list[Patches]:
        """The views of every family at a step, in canonical order."""
        families = 1 + len(self.composition.stages[step.stage].also)
        return [self.stages.patch(step, self.canvas, family).canonical() for family in range(families)]

    def count_rows(self) -> int:
        """Rows that the network will see in the whole run: the cost, known before it starts.

        A patching has as many views at every step of a stage, so the first step of each tells.
        """
        counts = (self.count_views(first) * number for first, number in self.stage_starts())
        return sum(counts) * len(self.branches)

    def stage_starts(self) -> list[tuple[Step, int]]:
        """The first step that is done of every stage, and how many are."""
        ahead = [step for step in self.steps() if step.index >= self.first]
        firsts = [step for step in ahead if step.stage_step == 0 or step.index == self.first]
        return [(step, step.stage_num_steps - step.stage_step) for step in firsts]

    def count_views(self, step: Step) -> int:
        """Forwards of one branch at a step: the views of all families and clean key views."""
        return sum(len(patches.views) + patches.clean_key for patches in self.patches(step))

    def run(
        self,
        latents: Tensor,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step, Tensor], Tensor],
        checkpoints: Checkpoints | None = None,
    ) -> Sampled:
        """Sample.

        Args:
            latents: Noise at the first step's scale, Float32[Tensor, "batch channels height width"].
            should_stop: Asked before every step; with several ranks, rank 0's answer of the step before counts.
            on_step: May replace the latents after a step, alike on all ranks.
            checkpoints: Where to go on from and what to keep, if anything.

        Returns:
            How far it came: all steps, unless it was stopped.
        """
        done = Sampled(latents, self.first) if checkpoints is None else checkpoints.resume(self, latents)
        begin, steps, control = time.perf_counter(), self.steps(), Control(self.exchange)
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
                done.latents, done.prediction = self.step(step, done)
            done.latents, done.steps = on_step(step, done.latents), step.index + 1
            due = checkpoints is not None and checkpoints.is_due(step)
            if due or step.stage_step + 1 == step.stage_num_steps:
                self._gather(done)
            if due and checkpoints is not None:
                checkpoints.keep(self, step, done)
            done.timings.total_s = time.perf_counter() - begin
        return done

    def _enter(self, step: Step, done: Sampled) -> None:
        """Before the first step of a stage, or of a run that goes on: strategies' state, and the relay if it fits."""
        stage, state = self.composition.stages[step.stage], done.state
        fresh = state.stage != step.stage
        if not fresh and done.entered:
            return
        done.entered = True
        if fresh:
            state.stage, state.masking = step.stage, stage.masking.init()
            state.guidance = [guidance.init() for guidance in stage.guidance]
        state.relay = None
        if self.can_relay(step.stage):
            guidance = message_guidance(stage)
            told = state.guidance[0] if guidance and not fresh else None
            first = self.patches(step)[0]
            state.relay = Relay(
                self.exchange, first, guidance[0] if guidance else None, self.branches, step.index, told
            )

    def can_relay(self, stage: int) -> bool:
        """Whether ranks do a stage without collectives, each on its own views."""
        if self.exchange.is_alone or self.watched or not self.stepper.works_by_cell or self.stages.watches_canvas:
            return False
        steps = [step for step in self.steps() if step.stage == stage]
        return can_relay(self.composition.stages[stage], self.canvas, (self.patches(step)[0] for step in steps))

    def _gather(self, done: Sampled) -> None:
        """Make the canvas whole on every rank, if each had only its own cells."""
        if done.state.relay is None or done.prediction is None:
            return
        prediction = done.prediction
        whole = [done.latents, prediction.latents, prediction.model_output, *self.stepper.canvases(done.latents)]
        done.state.relay.gather(list({id(tensor): tensor for tensor in whole}.values()))

    def step(self, step: Step, done: Sampled) -> tuple[Tensor, Prediction]:
        """One step of the run: the new latents and the prediction that led there; renews the strategies' state."""
        stage, state = self.composition.stages[step.stage], done.state
        state.trail = Trail(self.cell)
        state.trail.add("what it began with", done.latents, "look at the callback, or at the latents that were given")
        latents = self._guide_at("before", step, done.latents, None, None, state)
        scaled = self.stepper.scale(latents, step.index)
        outputs = []
        for family, patches in enumerate(self.patches(step)):
            predict = self._predict if state.relay is None else self._predict_own
            views = predict(step, latents, scaled, patches, family, done)
            outputs.append(self.stages.fuse(step, patches.views, views, latents, family))
            state.trail.add(f"fusion of family {family}", outputs[-1], "look at its weights")
        prediction = Prediction(latents, mix_families(outputs, stage.also, step), step)
        prediction = self._guide_at("canvas", step, prediction, None, None, state)
        noise = self.streams.generator("step-noise", step.index)
        latents = self.stepper.step(prediction.model_output, step.index, latents, noise)
        state.trail.add("the scheduler's step", latents, SCHEDULER)
        latents = self._guide_at("after", step, latents, None, None, state)
        state.trail.check_sync(step, latents)
        self.stages.step_end(step, latents, prediction)
        return latents, prediction

    def _guide_at(
        self, point: str, step: Step, subject: Any, patches: Patches | None, mask: Tensor | None, state: RunState
    ) -> Any:
        key = 0 if patches is None else patches.key
        for number, guidance in enumerate(self.composition.stages[step.stage].guidance):
            if guidance.point == point:
                subject, state.guidance[number] = self.stages.guide(
                    step, guidance, subject, key, mask, state.guidance[number]
                )
                state.trail.add_guided(guidance, subject, patches)
        return subject

    def _predict(
        self, step: Step, latents: Tensor, scaled: Tensor, patches: Patches, family: int, done: Sampled
    ) -> Prediction:
        """All views of one family, predicted by all ranks together; those of the main family guided."""
        batches = self._batches(step, scaled, patches, family, done.timings)
        answers = self.exchange.share(batches, lambda rows: self._forward(step, rows, done.timings))
        trail = done.state.trail
        trail.add_rows(patches, family, batches, answers)
        output = restore_order(self._combine(answers, len(latents)), patches)
        trail.add_views("classifier-free guidance", patches, family, output)
        views = Prediction(gather_views(latents, patches.views), output, step)
        if family == 0:
            key = evolve(views, latents=views.latents[patches.key], model_output=output[patches.key])
            mask = self._mask(step, key, next((a for a in answers if a.attention is not None), answers[0]), done.state)
            views = self._guide_at("views", step, views, patches, mask, done.state)
        return views

    def _predict_own(
        self, step: Step, latents: Tensor, scaled: Tensor, patches: Patches, family: int, done: Sampled
    ) -> Prediction:
        """The views of this rank, predicted and guided; what stands for the others' is of no consequence."""
        relay, trail = done.state.relay, done.state.trail
        assert relay is not None
        batches = self._batches(step, scaled, patches, family, done.timings)

        def combine(answers: Sequence[Predicted]) -> Tensor:
            trail.add_rows(patches, family, batches, answers)
            return self._combine(answers, len(latents))

        def tell(guidance: MessageGuidance, key: Prediction, seen: Predicted) -> Tensor:
            mask = self._mask(step, key, seen, done.state)
            return guidance.tell(
                step, evolve(key, latents=key.latents[None], model_output=key.model_output[None]), 0, mask
            )

        views = relay.predict(
            step, latents, batches, lambda rows: self._forward(step, rows, done.timings), combine, tell
        )
        if relay.guidance is not None:
            trail.add_message(lambda: relay.message(step))
            trail.add_guided(relay.guidance, views, patches)
        return views

    def _batches(self, step: Step, scaled: Tensor, patches: Patches, family: int, timings: Timings) -> list[Rows]:
        """One family's rows in micro-batches: gathered, permuted, cut in canonical order."""
        model_input = permute_views(gather_views(scaled, patches.views), patches)
        timings.rows += len(model_input) * len(self.branches)
        capture = family == 0 and self.composition.stages[step.stage].masking.request is not None
        wanted = len(patches.views) if patches.clean_key else patches.key
        return split_rows(patches, model_input, self.branches, self.row_batch, wanted if capture else None)

    def _mask(self, step: Step, key: Prediction, seen: Predicted, state: RunState) -> Tensor | None:
        """Where guidance acts, from the key view's prediction and attention."""
        seen = evolve(seen, model_output=key.model_output)
        mask, state.masking = self.stages.mask(step, key, seen, state.masking)
        return mask

    def _forward(self, step: Step, rows: Rows, timings: Timings) -> Predicted:
        started, count = time.perf_counter(), len(rows.views)
        trace = self.exchange.communicator.trace
        with trace.span("compute", f"step {step.index}", step=step.index, stage=step.stage, rows=count):
            answer = self.forwarding.forward(step, rows, lambda part: self.stages.predict(step, part))
        timings.predict_s += time.perf_counter() - started
        return answer

    def _combine(self, answers: Sequence[Predicted], batch: int) -> Tensor:
        """The views' predictions of all answers, Float32[Tensor, "views batch channels h w"]."""
        import torch

        flat = torch.cat([answer.model_output for answer in answers])
        rows = flat.view(-1, len(self.branches), batch, *flat.shape[1:])
        return combine_branches(rows, self.guidance_scale, self.guidance_rescale)


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
