"""The loop over the steps of a run: begin and end of phases and stages, stopping, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from attrs import frozen

from vitrail.comm.dataflow_exchange import DataflowExchange
from vitrail.core.config.log import logger
from vitrail.core.engine.cellwise import CellwiseCanvas
from vitrail.core.engine.dataflow_plan import WATCHED, DataflowPlan, goes_apart, needs_barrier
from vitrail.core.engine.dataflow_stage import DataflowStage
from vitrail.core.engine.exchange import StopVote
from vitrail.core.engine.independent_ranks import IndependentRanks, message_guidance
from vitrail.core.engine.rank_comparison import RankComparison
from vitrail.core.engine.resize import grow, grown_latents, moments, renormalised
from vitrail.core.engine.run_state import Sampled, Timings
from vitrail.core.engine.upscaling import upscaled
from vitrail.core.method.cost import Cost

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.dataflow import StepUnit
    from vitrail.core.engine.checkpoint import Checkpoints
    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.schedule.prediction import Prediction
    from vitrail.core.schedule.step import Step


@frozen(eq=False)
class Loop:
    """Run an engine over the phases of a picture."""

    engine: Engine

    @property
    def plan(self) -> RunPlan:
        """What the run will do."""
        return self.engine.plan

    @property
    def exchange(self) -> Exchange:
        """The ranks of the run."""
        return self.engine.forwards.exchange

    def run(
        self,
        latents: Tensor,
        should_stop: Callable[[], bool],
        on_step: Callable[[Step, Tensor, Prediction], Tensor],
        checkpoints: Checkpoints | None = None,
        guidance: Callable[[], tuple[float, float]] | None = None,
    ) -> Sampled:
        """Sample a picture; collective.

        Args:
            latents: Noise at the first step's scale, Float32[Tensor, "batch channels height width"].
            should_stop: Called before every step; with several ranks, rank 0's answer of the step before counts.
            on_step: Called with a step, the latents after it and the canvas's prediction; may replace the latents,
                equally on all ranks.
            checkpoints: Where to resume from and what to write, if anything.
            guidance: Called after ``on_step`` for the guidance scale and rescale from the next step on, equal on all
                ranks; None if they do not change.

        Returns:
            The state after all steps, or after the last one before a stop.
        """
        plan, engine = self.plan, self.engine
        done = (
            Sampled(latents, plan.first) if checkpoints is None else checkpoints.resume(plan, engine.streams, latents)
        )
        begin, steps, control = time.perf_counter(), plan.steps(), StopVote(self.exchange)
        done.state.comparison = RankComparison(self.exchange)
        barriers: dict[tuple[int, int], str] = {}  # why a stage needs them, by phase and stage
        flow: DataflowStage | None = None
        for step in steps[done.steps :]:
            if control.decide(should_stop()) if flow is None else flow.stops_before(step):
                self._stop(step, steps, done, checkpoints, flow)
                break
            self.exchange.communicator.note(f"step {step.index + 1} of {len(steps)}")
            self._enter(step, done)
            if flow is None and self._goes_without_barrier(step, done, barriers):
                flow = self._dataflow(step, steps, done, should_stop, checkpoints)
            with _logged(step, done.timings):
                done.latents, done.prediction = (
                    engine.step(step, done) if flow is None else flow.run(engine, step, done)
                )
            if self._hands_over(step, steps):
                done.latents = done.prediction.clean
            if engine.watched:  # so that a difference between ranks is not attributed to the observer
                done.state.compare()
            done.latents, done.steps = on_step(step, done.latents, done.prediction), step.index + 1
            engine = engine if guidance is None else engine.guided(*guidance())
            flow = None if flow is not None and flow.is_over else flow
            due = checkpoints is not None and checkpoints.is_due(step)
            if due or step.stage_step + 1 == step.stage_num_steps:
                self._gather(done)
            if step.index + 1 == len(steps) or steps[step.index + 1].phase != step.phase:
                self._leave(step, done)
            if due and checkpoints is not None:
                done.state.compare()
                checkpoints.keep(plan, step, done)
            done.timings.total_s = time.perf_counter() - begin
        done.state.compare()  # before anything is returned
        return done

    def shown(self, done: Sampled) -> Tensor:
        """Return the latents to decode after a stop: the clean prediction, resized to the wanted size."""
        prediction, phases = done.prediction, self.plan.phases
        phase = phases[0 if prediction is None else prediction.step.phase]
        clean = done.latents if prediction is None else prediction.clean
        return clean if phase is phases[-1] else grown_latents(clean, phase.canvas, self.plan.canvas)

    def _stop(
        self,
        step: Step,
        steps: list[Step],
        done: Sampled,
        checkpoints: Checkpoints | None,
        flow: DataflowStage | None,
    ) -> None:
        """Complete the canvas on every rank and write the checkpoint."""
        logger().info("run.interrupted", step=step.index)
        self._gather(done)
        if flow is not None:
            done.latents, done.prediction = flow.finish(self.engine, done)
        if checkpoints is not None and done.steps > self.plan.first and done.entered:
            checkpoints.keep(self.plan, steps[done.steps - 1], done)

    def _enter(self, step: Step, done: Sampled) -> None:
        """Prepare the first step of a phase, of a stage, or of a resumed run."""
        plan, stage, state = self.plan, self.plan.stage(step), done.state
        fresh = (state.phase, state.stage) != (step.phase, step.stage)
        if not fresh and done.entered:
            return
        if step.phase > max(0, state.phase):
            self._grow(step, done)
        done.entered = True
        if fresh:
            masking = plan.hooks.asked("masking", step, stage.masking)
            state.phase, state.stage, state.masking = step.phase, step.stage, masking.ask(stage.masking.init)
            state.guidance = [plan.hooks.asked("guidance", step, each).ask(each.init) for each in stage.guidance]
        state.independent = None
        apart = not (self.exchange.is_alone or self.engine.watched) and goes_apart(plan, step, self.exchange.flows)
        if apart:
            guidance = message_guidance(stage)
            own = state.guidance[0] if guidance and not fresh else None
            resumed_message = cast("Tensor | None", own)  # the state of guidance by messages is the last message
            first, speaking = plan.patches(step)[0], guidance[0] if guidance else None
            state.note(step, plan.hooks.who("patching", step, stage.patching), first.views)
            state.note(step, "the picture so far", done.latents)
            state.compare(before=step)  # the last comparison until the canvas is complete again
            state.independent = IndependentRanks(
                self.exchange, first, speaking, plan.views_branches(step), step.index, resumed_message
            )

    def _goes_without_barrier(self, step: Step, done: Sampled, known: dict[tuple[int, int], str]) -> bool:
        """Whether ranks do the steps from here on as a dataflow; each stage is asked about once a phase."""
        if not self.exchange.flows or done.state.independent is not None:
            return False
        place = (step.phase, step.stage)
        if place not in known:
            known[place] = WATCHED if self.engine.watched else needs_barrier(self.plan, step)
            if known[place]:
                logger().info("exchange.needs_barrier", stage=step.stage, reason=known[place])
        return not known[place]

    def _dataflow(
        self,
        step: Step,
        steps: list[Step],
        done: Sampled,
        should_stop: Callable[[], bool],
        checkpoints: Checkpoints | None,
    ) -> DataflowStage:
        """Return the dataflow from a step to the next at which the canvas must be whole; collective."""
        import torch

        state, forwards, exchange = done.state, self.engine.forwards, self.exchange
        left = steps[step.index :]
        last = next(
            n
            for n, each in enumerate(left)
            if each.stage_step + 1 == each.stage_num_steps or (checkpoints is not None and checkpoints.is_due(each))
        )
        plan = DataflowPlan.of(self.plan, left[: last + 1], forwards.row_batch, exchange.speeds)
        who = self.plan.hooks.who("patching", step, self.plan.stage(step).patching)
        for each, patches in zip(plan.steps, plan.patches, strict=True):
            state.note(each, who, (patches.views, [view.roll for view in patches.views]))
        state.note(step, "the picture so far", done.latents)
        state.compare()  # the last comparison until the canvas is whole again
        device, (batch, channels) = exchange.communicator.device, done.latents.shape[:2]

        def like(unit: StepUnit) -> Tensor:
            rows, shape = plan.rows[unit.step][unit.unit], plan.patches[unit.step].views[0].shape
            return torch.empty((rows * batch, channels, *shape), dtype=done.latents.dtype, device=device)

        messages = DataflowExchange(exchange.communicator, plan.order, plan.needs, like, should_stop)
        return DataflowStage(plan, messages, CellwiseCanvas(self.plan.phase(step).stepper, done.latents))

    def _hands_over(self, step: Step, steps: list[Step]) -> bool:
        """Whether the next size takes over here, from the clean prediction instead of what the scheduler made of it."""
        return self.plan.phase(step).is_cut and steps[step.index + 1].phase != step.phase

    def _grow(self, step: Step, done: Sampled) -> None:
        """Resize the picture so far to the size of the phase that begins."""
        phase, before = self.plan.phase(step), self.plan.phases[step.phase - 1]
        vae = self.engine.guidance.counted_vae(done.timings)
        with self.exchange.communicator.trace.span("compute", f"to {phase.picture}"):
            start = grow(done.latents, before, phase, vae, self.engine.streams, self._upscaling(step, done.timings))
        done.state.start = start
        done.latents = phase.stepper.noised(start.clean, start.noise, phase.first)

    def _upscaling(self, step: Step, timings: Timings) -> Callable[[Tensor], Tensor] | None:
        """Return the upscaler by which the phase of a step is entered, its calls counted; None if it has none."""
        phase = self.plan.phase(step)
        if phase.enter is None or phase.enter.upscaler is None:
            return None
        asked = self.plan.hooks.asked("upscaler", step, phase.enter.upscaler)

        def upscale(picture: Tensor) -> Tensor:
            timings.add(Cost(upscalings=1))
            return upscaled(asked, picture, phase.picture, phase.canvas.wrap, self.exchange)

        return upscale

    def _leave(self, step: Step, done: Sampled) -> None:
        """After the last step of a phase: record or restore the mean and deviation of the first phase."""
        phase, state = self.plan.phase(step), done.state
        if phase.enter is None:
            state.base = moments(done.latents, phase.canvas)
        elif phase.enter.renormalise:
            assert state.base is not None
            done.latents = renormalised(done.latents, state.base, phase.canvas)

    def _gather(self, done: Sampled) -> None:
        """Complete the canvas on every rank, if each had only its own cells."""
        if done.state.independent is None or done.prediction is None:
            return
        prediction = done.prediction
        stepper = self.plan.phase(prediction.step).stepper
        whole = [done.latents, prediction.latents, prediction.model_output, *stepper.canvases(done.latents)]
        done.state.independent.gather(list({id(tensor): tensor for tensor in whole}.values()))
        assert done.state.comparison is not None
        done.state.comparison.note(prediction.step, "the views of all ranks", done.latents)


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
