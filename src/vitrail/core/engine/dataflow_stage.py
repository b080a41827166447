"""Steps without a barrier: each micro-batch is predicted once the views that it overlaps are, a step before.

The order of micro-batches and their ranks are in a ``DataflowPlan``, messages in a ``DataflowExchange``, cells at
different steps in a ``CellwiseCanvas``. Every rank gets every prediction, so each has the whole canvas once the last
step is done: at a checkpoint, at the end of the stage, and where the run stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from vitrail.comm.dataflow import AHEAD
from vitrail.core.engine.asked import AskedPairs
from vitrail.core.engine.cellwise import CellwiseCanvas
from vitrail.core.engine.micro_batches import gather_views
from vitrail.core.engine.nonfinite import GIVEN, SCHEDULER, NonFiniteSearch
from vitrail.core.engine.rank_comparison import digest_of
from vitrail.core.engine.reading import Reading
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.comm.dataflow import StepUnit
    from vitrail.comm.dataflow_exchange import DataflowExchange
    from vitrail.core.engine.dataflow_plan import DataflowPlan
    from vitrail.core.engine.engine import Engine
    from vitrail.core.engine.run_state import Sampled
    from vitrail.core.geometry.views import Patches, View
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step


@define(eq=False)
class OpenStep:
    """A step that is not done in all cells.

    Attributes:
        number: Its number in the plan.
        step: Position of the run.
        patches: Its views.
        batches: Its micro-batches, without their input.
        texts: Texts of its views, () if all have the prompt.
        nonfinite: Sums of its results.
        answers: Outputs of micro-batches that are here, by number.
        sums: Sums of the new latents of each of its parts.
        fused: Sums of what was fused in each of its parts.
        digests: Digests of what was fused and of the new latents, all parts added up.
    """

    number: int
    step: Step
    patches: Patches
    batches: list[MicroBatch]
    texts: Sequence[str | None]
    nonfinite: NonFiniteSearch
    answers: dict[int, Tensor] = field(factory=dict)
    sums: list[Tensor] = field(factory=list)
    fused: list[Tensor] = field(factory=list)
    digests: tuple[Tensor, Tensor] | None = None

    @property
    def is_predicted(self) -> bool:
        """Whether all outputs are here."""
        return len(self.answers) == len(self.batches)


@define(eq=False)
class DataflowStage:
    """Some steps of one stage on one rank.

    Attributes:
        plan: The micro-batches and their order.
        exchange: Messages of this rank.
        canvas: The canvas and the scheduler.
        open: Steps that are begun and not done, by number.
        last: Canvas's prediction at the last step that is done as a whole.
        num_done: Steps that are done.
    """

    plan: DataflowPlan
    exchange: DataflowExchange
    canvas: CellwiseCanvas
    open: dict[int, OpenStep] = field(factory=dict)
    last: Prediction | None = None
    num_done: int = 0

    @property
    def is_over(self) -> bool:
        """Whether all steps of the plan are done, so that the canvas is whole; False where the run stops before."""
        return self.num_done == len(self.plan.steps)

    def stops_before(self, step: Step) -> bool:
        """Whether the run stops before a step; equal on all ranks."""
        return self.exchange.stops_before(step.index - self.plan.steps[0].index)

    def run(self, engine: Engine, step: Step, done: Sampled) -> tuple[Tensor, Prediction]:
        """Predict this rank's views up to a step; the last step is done on the whole canvas.

        Args:
            engine: The engine.
            step: Position of the run.
            done: State of the picture, updated.

        Returns:
            The latents, in which cells are at different steps until the last, and the canvas's prediction at the last
            step that was done as a whole.
        """
        number = step.index - self.plan.steps[0].index
        most = len(self.plan.rows[number]) if engine.forwards.workers > 1 else 1
        self._complete(engine, number - AHEAD, done)
        while (unit := self.exchange.next(number)) is not None:
            self._complete(engine, unit.step - AHEAD, done)
            ready = self.exchange.ready(unit, most)
            if ready:
                self._predict(engine, ready, done)
        if number == self.exchange.num_steps - 1:
            self.finish(engine, done)
        elif all(map(self.exchange.has, self.exchange.units(number))):
            self._advance(engine, number + 1, done)
        prediction = Prediction(done.latents, done.latents, step) if self.last is None else self.last
        engine.plan.hooks.step_end(step, self.canvas.latents, prediction)
        return self.canvas.latents, prediction

    def finish(self, engine: Engine, done: Sampled) -> tuple[Tensor, Prediction]:
        """Do the steps that are begun on the whole canvas; see ``run`` for the result."""
        self._complete(engine, self.exchange.num_steps - 1, done)
        self.exchange.finish()
        assert self.last is not None
        return self.canvas.latents, self.last

    def _complete(self, engine: Engine, last: int, done: Sampled) -> None:
        """Do all steps up to one in all cells, one after the other, waiting for what is missing of each."""
        for number in range(self.num_done, last + 1):
            self.exchange.wait(self.exchange.units(number))
            self._advance(engine, number + 1, done)

    def _predict(self, engine: Engine, units: Sequence[StepUnit], done: Sampled) -> None:
        """Predict micro-batches of one step, and send each as soon as it is predicted."""
        number = units[0].step
        opened = self._open(engine, number, done)
        if not self.canvas.is_at(number, [view for unit in units for view in opened.batches[unit.unit].views]):
            self._advance(engine, number, done)
        batches = [self._read(opened, unit.unit) for unit in units]
        answers = engine.forwards.each(opened.step, batches, done.timings)
        for unit, answer in zip(units, answers, strict=True):
            self.exchange.send(unit, answer.model_output)

    def _open(self, engine: Engine, number: int, done: Sampled) -> OpenStep:
        """Return a step that is begun, its views without their latents."""
        if number not in self.open:
            step, patches = self.plan.steps[number], self.plan.patches[number]
            batches, texts = engine.reader.outline(step, self.canvas.latents, patches, done)
            nonfinite = NonFiniteSearch(engine.cell)
            if number == 0:  # later steps begin with what the one before has made
                nonfinite.add("what it began with", self.canvas.latents, GIVEN)
            self.open[number] = OpenStep(number, step, patches, batches, texts, nonfinite)
        return self.open[number]

    def _read(self, opened: OpenStep, unit: int) -> MicroBatch:
        """Return a micro-batch with its input, whose cells are all at its step."""
        blank = opened.batches[unit]
        rows = gather_views(self.canvas.latents, blank.views).flatten(0, 1)
        return evolve(blank, model_input=self.canvas.scale(opened.number, opened.step.phase_step, rows))

    def _advance(self, engine: Engine, until: int, done: Sampled) -> None:
        """Do all steps before a number on the cells that are ready for them."""
        for number in range(self.num_done, until):
            opened = self._open(engine, number, done)
            for unit in self.exchange.units(number):
                if unit.unit not in opened.answers and self.exchange.has(unit):
                    opened.answers[unit.unit] = self.exchange.take(unit).to(self.canvas.latents.device)
            cells = self.canvas.ready(number, self._late(opened))
            if bool(cells.any()):
                self._do(engine, opened, cells, done)

    def _late(self, opened: OpenStep) -> list[View]:
        """Return the views of which a row is not predicted, or not here."""
        missing = [views for unit, views in enumerate(self.plan.units[opened.number]) if unit not in opened.answers]
        return [opened.patches.views[number] for number in sorted({view for views in missing for view in views})]

    def _do(self, engine: Engine, opened: OpenStep, cells: Tensor, done: Sampled) -> None:
        """Do a step on some cells: fuse what is predicted, and one scheduler step."""
        import torch

        step, before, hooks = opened.step, self.canvas.latents, engine.plan.hooks
        answers = [
            ModelOutput(opened.answers[unit] if unit in opened.answers else before.new_zeros(blank.model_input.shape))
            for unit, blank in enumerate(opened.batches)
        ]
        views = gather_views(before, opened.patches.views)
        reading = Reading(0, opened.patches, views, opened.batches, AskedPairs.once(len(views)))
        output = engine.combined(step, answers, reading)
        fused = hooks.fuse(step, opened.patches.views, Prediction(views, output, step), before, 0)
        noise = engine.streams.generator("step-noise", step.index)
        made = self.canvas.advance(opened.number, step.phase_step, fused, cells, noise)
        own = torch.where(cells, fused, 0.0)  # elsewhere views may be missing, and cells at another step
        opened.sums.append(made.sum())
        opened.fused.append(own.sum())
        fresh, before_it = (digest_of(own), digest_of(made)), opened.digests
        opened.digests = fresh if before_it is None else (before_it[0] + fresh[0], before_it[1] + fresh[1])
        if opened.is_predicted and bool((self.canvas.done > opened.number).all()):
            nonfinite = opened.nonfinite
            nonfinite.add_rows(opened.patches, 0, opened.batches, answers, reading.entries)
            nonfinite.add_views("classifier-free guidance", opened.patches, 0, output)
            nonfinite.add("fusion of view group 0", torch.stack(opened.fused), "look at its weights")
            nonfinite.add("the scheduler's step", made, SCHEDULER)
            nonfinite.check_sync(step, torch.stack(opened.sums))
            self._close(engine, opened, done)
            self.last = Prediction(before, fused, step)

    def _close(self, engine: Engine, opened: OpenStep, done: Sampled) -> None:
        """Record the results of a step that is done in all cells, on all ranks in the order of steps; drop the rest."""
        step, stage, hooks = opened.step, engine.plan.stage(opened.step), engine.plan.hooks
        done.state.note(step, hooks.who("prompting", step, stage.prompting), opened.texts)
        if opened.digests is not None:
            done.state.note_digest(step, hooks.who("fusion", step, stage.fusion), opened.digests[0])
            done.state.note_digest(step, "the scheduler", opened.digests[1])
        self.exchange.drop(opened.number)
        del self.open[opened.number]
        self.num_done = opened.number + 1
