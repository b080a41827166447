"""The loop: one formula, one scheduler step per timestep on the canvas.

    noise prediction of the canvas = fuse(guide(predict(views of the latents), mask))

Everything but ``predict`` is cheap and the same on every rank; which rows are predicted where is a plan
over ``rows_of`` and does not reach the picture.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from vitrail.core.assembly import gather_views, mix_families, permute_views, restore_order, split_rows
from vitrail.core.log import logger
from vitrail.core.noise_schedule import Stepper
from vitrail.core.prediction import Prediction
from vitrail.core.protocols import Predicted, Rows
from vitrail.core.step import Step
from vitrail.errors import PredictionError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.composition import Composition
    from vitrail.core.protocols import Branch
    from vitrail.core.stages import Stages
    from vitrail.core.streams import Streams
    from vitrail.core.views import Canvas, Patches


@define
class RunState:
    """What a run carries from step to step."""

    stage: int = -1
    guidance: list[Any] = field(factory=list)
    masking: Any = None


@define
class Timings:
    """Seconds of a run, by what they went into, and counted rows."""

    predict_s: float = 0.0
    total_s: float = 0.0
    rows: int = 0


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
    """

    composition: Composition
    stages: Stages
    stepper: Stepper
    canvas: Canvas
    streams: Streams
    branches: tuple[Branch, ...]
    guidance_scale: float
    row_batch: int

    def steps(self) -> list[Step]:
        """Every step of the run, with the stage it belongs to."""
        schedule, result, begin = self.stepper.schedule, [], 0
        total = len(schedule.timesteps)
        for stage, end in enumerate(self.composition.boundaries(total)):
            for index in range(begin, end):
                result.append(
                    Step(
                        index=index,
                        num_steps=total,
                        timestep=schedule.timesteps[index],
                        alpha=schedule.alphas[index],
                        sigma=schedule.sigmas[index],
                        stage=stage,
                        stage_step=index - begin,
                        stage_num_steps=end - begin,
                        prediction_type=schedule.prediction_type,
                    )
                )
            begin = end
        return result

    def patches(self, step: Step) -> list[Patches]:
        """The views of every family at a step, in canonical order."""
        families = 1 + len(self.composition.stages[step.stage].also)
        return [self.stages.patch(step, self.canvas, family).canonical() for family in range(families)]

    def count_rows(self) -> int:
        """Rows that the network will see in the whole run: the cost, known before it starts.

        A patching has as many views at every step of a stage, so the first step of each tells.
        """
        firsts = [step for step in self.steps() if step.stage_step == 0]
        return sum(self.count_views(step) * step.stage_num_steps for step in firsts) * len(self.branches)

    def count_views(self, step: Step) -> int:
        """Forwards of one branch at a step: the views of all families and clean key views."""
        return sum(len(patches.views) + patches.clean_key for patches in self.patches(step))

    def run(
        self, latents: Tensor, should_stop: Callable[[], bool], on_step: Callable[[Step, Tensor], Tensor]
    ) -> tuple[Tensor, Prediction | None, Timings]:
        """Sample.

        Args:
            latents: Noise at the first step's scale, Float32[Tensor, "batch channels height width"].
            should_stop: Asked before every step.
            on_step: May replace the latents after a step.

        Returns:
            The latents after the last step, the last prediction, and the timings.
        """
        timings, state, prediction = Timings(), RunState(), None
        begin = time.perf_counter()
        for step in self.steps():
            if should_stop():
                logger().info("run.interrupted", step=step.index)
                break
            started, rows = time.perf_counter(), timings.rows
            latents, prediction = self.step(step, latents, state, timings)
            latents = on_step(step, latents)
            timings.total_s = time.perf_counter() - begin
            logger().debug(
                "step.finished",
                step=step.index,
                timestep=step.timestep,
                stage=step.stage,
                duration_ms=round(1000 * (time.perf_counter() - started), 3),
                rows=timings.rows - rows,
            )
        return latents, prediction, timings

    def step(self, step: Step, latents: Tensor, state: RunState, timings: Timings) -> tuple[Tensor, Prediction]:
        """One step of the run; reads and renews ``state``."""
        stage = self.composition.stages[step.stage]
        if state.stage != step.stage:
            state.stage = step.stage
            state.guidance = [g.init() for g in stage.guidance]
            state.masking = stage.masking.init()
        latents = self._guide_at("before", step, latents, 0, None, state)
        scaled = self.stepper.scale(latents, step.index)
        outputs = []
        for family, patches in enumerate(self.patches(step)):
            capture = family == 0 and stage.masking.request is not None
            predicted = self._predict(step, scaled, patches, timings, capture)
            views = Prediction(gather_views(latents, patches.views), predicted.model_output, step)
            if family == 0:
                key = evolve(views, latents=views.latents[patches.key], model_output=views.model_output[patches.key])
                mask, state.masking = self.stages.mask(step, key, predicted, state.masking)
                views = self._guide_at("views", step, views, patches.key, mask, state)
            outputs.append(self.stages.fuse(step, patches.views, views, latents, family))
        prediction = Prediction(latents, mix_families(outputs, stage.also, step), step)
        prediction = self._guide_at("canvas", step, prediction, 0, None, state)
        noise = self.streams.generator("step-noise", step.index)
        latents = self.stepper.step(prediction.model_output, step.index, latents, noise)
        latents = self._guide_at("after", step, latents, 0, None, state)
        _refuse_non_finite_sync(step, latents)
        self.stages.step_end(step, latents, prediction)
        return latents, prediction

    def _guide_at(self, point: str, step: Step, subject: Any, key: int, mask: Tensor | None, state: RunState) -> Any:
        for number, guidance in enumerate(self.composition.stages[step.stage].guidance):
            if guidance.point == point:
                subject, state.guidance[number] = self.stages.guide(
                    step, guidance, subject, key, mask, state.guidance[number]
                )
        return subject

    def _predict(self, step: Step, scaled: Tensor, patches: Patches, timings: Timings, capture: bool) -> Predicted:
        """All rows of one family: gather, permute, forward in micro-batches, undo, classifier-free guidance."""
        import torch

        views = gather_views(scaled, patches.views)
        permuted = permute_views(views, patches)
        wanted = len(patches.views) if patches.clean_key else patches.key
        batches = split_rows(patches, permuted, self.branches, self.row_batch, wanted if capture else None)
        answers = [self._forward(step, rows, timings) for rows in batches]
        flat = torch.cat([answer.model_output for answer in answers])
        branches = flat.view(len(permuted), len(self.branches), *permuted.shape[1:])
        output = self._combine(branches)
        output = restore_order(output, patches)
        seen = next((answer for answer in answers if answer.attention is not None), answers[0])
        return Predicted(output, seen.attention, seen.has_content)

    def _forward(self, step: Step, rows: Rows, timings: Timings) -> Predicted:
        started = time.perf_counter()
        answer = self.stages.predict(step, rows)
        timings.predict_s += time.perf_counter() - started
        timings.rows += len(rows.views)
        return answer

    def _combine(self, branches: Tensor) -> Tensor:
        """Classifier-free guidance, ``uncond + scale (cond - uncond)``; Ho and Salimans, 2022, eq. 6."""
        if len(self.branches) == 1:
            return branches[:, 0]
        uncond, cond = branches[:, 0], branches[:, 1]
        return uncond + self.guidance_scale * (cond - uncond)


def _refuse_non_finite_sync(step: Step, latents: Tensor) -> None:
    """Stop at the first step that is not finite; waits for the device."""
    if not math.isfinite(latents.sum().item()):
        raise PredictionError(
            f"the latents are not finite after step {step.index} (stage {step.stage}, timestep {step.timestep:g}); "
            "try float32, a lower guidance scale or a weaker guidance"
        )
