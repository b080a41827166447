"""Forwards of micro-batches, shared between the ranks, and questions to the network besides the views."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from vitrail.comm.partition import assign, rounds
from vitrail.core.engine.asked import AskedEntry, CanvasPart
from vitrail.core.engine.hooks import at, check_output
from vitrail.core.engine.micro_batches import combine_branches, split_rows
from vitrail.core.engine.parallel import begun
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.engine.memory_backoff import MemoryBackoff
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.run_state import Timings
    from vitrail.core.geometry.views import View
    from vitrail.core.method.micro_batch import Branch, MicroBatch, SizeConditioning
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True, eq=False)
class Forwards:
    """Calls of the network on one rank, and its share of the work.

    Attributes:
        predict: One forward of a micro-batch, with the plugins that wrap it.
        condition: Encode the conditioning of a micro-batch, if that was not done yet.
        exchange: The ranks.
        backoff: Splits forwards that do not fit in memory.
        row_batch: Largest number of rows per forward.
        workers: Micro-batches that are computed concurrently.
    """

    predict: Callable[[Step, MicroBatch], ModelOutput]
    condition: Callable[[Step, MicroBatch], object]
    exchange: Exchange
    backoff: MemoryBackoff
    row_batch: int
    workers: int = 1

    def share(self, step: Step, batches: Sequence[MicroBatch], timings: Timings) -> list[ModelOutput]:
        """Compute micro-batches on all ranks together; collective.

        Args:
            step: Position of the run.
            batches: The same on all ranks.
            timings: Record of this rank's work, updated.

        Returns:
            The outputs of all micro-batches, in their order, on every rank.
        """
        exchange, first = self.exchange, _captured(batches)
        owners = assign([len(rows.views) for rows in batches], exchange.speeds, first)
        turns = rounds(owners, exchange.world_size, first)
        own = [unit for units in turns for unit in units if owners[unit] == exchange.rank]
        if self.workers > 1:
            for rows in batches:
                self.condition(step, rows)
        with begun(partial(self._predicted, step), [batches[unit] for unit in own], self.workers) as asked:
            pending = dict(zip(own, asked, strict=True))
            if not exchange.is_alone:
                return self._gathered(step, batches, owners, turns, pending, timings)
            answers = []
            for unit, rows in enumerate(batches):
                with self._recorded(step, timings, rows):
                    answers.append(pending[unit]())
            return answers

    def _gathered(
        self,
        step: Step,
        batches: Sequence[MicroBatch],
        owners: Sequence[int],
        turns: Sequence[Sequence[int]],
        pending: Mapping[int, Callable[[], ModelOutput]],
        timings: Timings,
    ) -> list[ModelOutput]:
        """Return the outputs of all ranks, sent round by round while the next ones are computed."""
        answers: dict[tuple[int, str], Tensor] = {}
        works = []
        for units in turns:
            out = {key: like for unit in units for key, like in _wire(unit, batches[unit], None).items()}
            mine: dict[tuple[int, str], Tensor] = {}
            for unit in (unit for unit in units if owners[unit] == self.exchange.rank):
                with self._recorded(step, timings, batches[unit]):
                    predicted = pending[unit]()
                mine = _wire(unit, batches[unit], predicted)
            owner = {key: owners[key[0]] for key in out}
            works.append(self.exchange.communicator.all_gather_into(out, mine, owner, async_op=True))
            answers |= out
        for work in works:
            assert work is not None
            work.wait()
        return [_unwire(unit, batches[unit], answers) for unit in range(len(batches))]

    def each(self, step: Step, batches: Sequence[MicroBatch], timings: Timings) -> Iterator[ModelOutput]:
        """Compute micro-batches on this rank alone, and yield each output as soon as it and those before are there.

        Args:
            step: Position of the run.
            batches: The micro-batches.
            timings: Record of this rank's work, updated.
        """
        if self.workers > 1:
            for rows in batches:
                self.condition(step, rows)
        with begun(partial(self._predicted, step), batches, self.workers) as asked:
            for rows, pending in zip(batches, asked, strict=True):
                with self._recorded(step, timings, rows):
                    predicted = pending()
                yield predicted

    def forward(self, step: Step, rows: MicroBatch, timings: Timings) -> ModelOutput:
        """Compute one micro-batch on this rank alone.

        Args:
            step: Position of the run.
            rows: The micro-batch.
            timings: Record of this rank's work, updated.
        """
        with self._recorded(step, timings, rows):
            return self._predicted(step, rows)

    def _predicted(self, step: Step, rows: MicroBatch) -> ModelOutput:
        """Compute one micro-batch, in this thread; take its time if the ranks' speeds are measured."""
        meter, clock = self.exchange.meter, self.exchange.communicator.trace.clock
        begin = 0.0 if meter is None else clock()
        predicted = self.backoff.forward(partial(self.predict, step), step, rows)
        check_output(step, rows, predicted)
        if meter is not None:
            predicted.model_output.flatten()[:1].tolist()  # wait for the device
            meter.tell(rows, clock() - begin, self.workers)
        return predicted

    @contextmanager
    def _recorded(self, step: Step, timings: Timings, rows: MicroBatch) -> Iterator[None]:
        """Record the time of a block that computes a micro-batch, unless it raises."""
        started, trace = time.perf_counter(), self.exchange.communicator.trace
        with trace.span("compute", f"step {step.index}", step=step.index, stage=step.stage, rows=len(rows.views)):
            try:
                yield
            except VitrailError:
                raise
            except Exception as error:
                if not getattr(error, "__notes__", ()):
                    error.add_note(f"in vitrail_predict{at(step)}")
                raise
        timings.predict_s += time.perf_counter() - started

    def ask(
        self,
        plan: RunPlan,
        step: Step,
        asked: Step,
        model_input: Tensor,
        view: View,
        sizes: SizeConditioning | None,
        timings: Timings,
    ) -> Tensor:
        """Ask the network about latents besides the views; collective, see ``Ask``.

        Args:
            plan: What the run does.
            step: Position of the run, which gives branches and guidance scale.
            asked: Step whose timestep and scales the input has.
            model_input: Scaled latents, Float32[Tensor, "batch channels h w"].
            view: The part of the canvas that they show.
            sizes: Size conditioning; the stage's if None.
            timings: Record of this rank's work, updated.

        Returns:
            The output after classifier-free guidance, Float32[Tensor, "batch channels h w"].
        """
        shown = [CanvasPart(view)]
        batches = question(plan, step, model_input[None], shown, self.row_batch, sizes)
        timings.count(batches, plan, step)
        return answer(plan, step, self.share(asked, batches, timings), len(model_input), shown)

    def ask_branches(
        self,
        plan: RunPlan,
        step: Step,
        asked: Step,
        model_input: Tensor,
        shown: Sequence[CanvasPart],
        sizes: SizeConditioning | None,
        timings: Timings,
    ) -> dict[Branch, Tensor]:
        """Ask the network about several inputs, branch by branch; collective, see ``AskBranches``.

        Args:
            plan: What the run does.
            step: Position of the run, which gives the branches.
            asked: Step whose timestep and scales the inputs have.
            model_input: Scaled latents, Float32[Tensor, "asked batch channels h w"].
            shown: The part of the canvas that each shows.
            sizes: Size conditioning; the stage's if None.
            timings: Record of this rank's work, updated.

        Returns:
            The output of each branch, Float32[Tensor, "asked batch channels h w"].
        """
        batches = question(plan, step, model_input, shown, self.row_batch, sizes)
        timings.count(batches, plan, step)
        rows = branched(plan, step, self.share(asked, batches, timings), model_input.shape[1], shown)
        return {branch: rows[:, number] for number, branch in enumerate(plan.own_branches(step))}


def question(
    plan: RunPlan,
    step: Step,
    model_input: Tensor,
    shown: Sequence[CanvasPart],
    row_batch: int | None,
    sizes: SizeConditioning | None = None,
) -> list[MicroBatch]:
    """Return the rows of some questions in micro-batches, with the step's own branches and, with regions, all texts.

    Args:
        plan: What the run does.
        step: Position of the run, which gives the canvas.
        model_input: Scaled latents, Float32[Tensor, "asked batch channels h w"].
        shown: The part of the canvas that each shows.
        row_batch: Largest number of rows per micro-batch; None for all in one.
        sizes: Size conditioning; the stage's if None.
    """
    import torch

    every = [plan.regions.asked_of(plan.phase(step).canvas, each) for each in shown]
    inputs = [pairs.inputs(own[None]) for pairs, own in zip(every, model_input, strict=True)]
    asked = [
        AskedEntry(each.view, *plan.regions.texts(text))
        for each, pairs in zip(shown, every, strict=True)
        for _, text in pairs.pairs
    ]
    branches = plan.own_branches(step)
    most = len(asked) * len(branches) if row_batch is None else row_batch
    return split_rows(asked, inputs[0] if len(inputs) == 1 else torch.cat(inputs), branches, most, sizes)


def branched(
    plan: RunPlan, step: Step, answers: Sequence[ModelOutput], batch: int, shown: Sequence[CanvasPart]
) -> Tensor:
    """Return the answers to a question's micro-batches by branch, the texts of each mixed by their shares.

    Args:
        plan: What the run does.
        step: Position of the run, which gives the branches.
        answers: Outputs of the micro-batches, in their order.
        batch: Number of pictures.
        shown: What was asked about.

    Returns:
        Float32[Tensor, "asked branches batch channels h w"].
    """
    import torch

    flat = torch.cat([each.model_output for each in answers])
    rows = flat.view(len(shown), -1, len(plan.own_branches(step)), batch, *flat.shape[1:])
    canvas = plan.phase(step).canvas
    mixed = [plan.regions.asked_of(canvas, each).mixed(own) for each, own in zip(shown, rows, strict=True)]
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def answer(
    plan: RunPlan, step: Step, answers: Sequence[ModelOutput], batch: int, shown: Sequence[CanvasPart]
) -> Tensor:
    """Apply classifier-free guidance to the outputs of one question's micro-batches; see ``branched``.

    Returns:
        Float32[Tensor, "batch channels h w"].
    """
    rows = branched(plan, step, answers, batch, shown)
    return combine_branches(rows, plan.scale_at(step), plan.cfg.rescale)[0]


def _captured(batches: Sequence[MicroBatch]) -> int | None:
    """Return the micro-batch whose attention maps are captured, the key view's; None if there is none."""
    return next((unit for unit, rows in enumerate(batches) if rows.capture), None)


def _wire(unit: int, rows: MicroBatch, answer: ModelOutput | None) -> dict[tuple[int, str], Tensor]:
    """Return an output as tensors to send, or tensors of the same shapes to receive into if there is none."""
    output = rows.model_input.new_empty(rows.model_input.shape) if answer is None else answer.model_output
    keys = {(unit, "output"): output}
    if rows.capture:
        batch = len(rows.model_input) // len(rows.views)
        flags = rows.model_input.new_zeros(2)
        maps = rows.model_input.new_zeros(batch, 1, *rows.model_input.shape[-2:])
        if answer is not None:
            flags = flags.new_tensor([answer.attention is not None, answer.has_content])
            maps = maps if answer.attention is None else answer.attention.to(maps.dtype)
        keys |= {(unit, "flags"): flags, (unit, "maps"): maps}
        if rows.words:
            words = None if answer is None else answer.words
            empty = rows.model_input.new_zeros(batch, rows.words, *rows.model_input.shape[-2:])
            keys[unit, "words"] = empty if words is None else words.to(empty.dtype)
    return keys


def _unwire(unit: int, rows: MicroBatch, answers: dict[tuple[int, str], Tensor]) -> ModelOutput:
    """Return an output from the tensors that were received."""
    predicted = ModelOutput(answers[unit, "output"])
    if rows.capture:
        has_attention, has_content = (bool(flag) for flag in answers[unit, "flags"].tolist())
        maps = answers[unit, "maps"] if has_attention else None
        words = answers.get((unit, "words")) if has_attention else None
        predicted = evolve(predicted, attention=maps, has_content=has_content, words=words)
    return predicted
