"""Micro-batches through the network, shared among the ranks; and questions besides those of the views."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from vitrail.comm.partition import assign, rounds
from vitrail.core.engine.hooks import at, check_output
from vitrail.core.engine.micro_batches import combine_branches, split_rows
from vitrail.core.engine.parallel import begun
from vitrail.core.geometry.views import Patches
from vitrail.core.method.micro_batch import ModelOutput
from vitrail.errors import VitrailError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.engine.memory_backoff import MemoryBackoff
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.run_state import Timings
    from vitrail.core.geometry.views import View
    from vitrail.core.method.micro_batch import MicroBatch, SizeConditioning
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True, eq=False)
class Forwards:
    """The network as one rank reaches it, and its share of the work.

    Attributes:
        predict: One micro-batch through the network, with whatever plugins wrap around it.
        condition: Encodes what a micro-batch is conditioned on, if that was not done yet.
        exchange: The ranks.
        backoff: Cuts forwards for which memory does not suffice.
        row_batch: Rows a forward, at most.
        workers: Micro-batches that are computed side by side.
    """

    predict: Callable[[Step, MicroBatch], ModelOutput]
    condition: Callable[[Step, MicroBatch], object]
    exchange: Exchange
    backoff: MemoryBackoff
    row_batch: int
    workers: int = 1

    def share(self, step: Step, batches: Sequence[MicroBatch], timings: Timings) -> list[ModelOutput]:
        """Every rank's answers on every rank, in the order of the micro-batches."""
        exchange, first = self.exchange, _captured(batches)
        owners = assign([len(rows.views) for rows in batches], exchange.speeds, first)
        turns = rounds(owners, exchange.world_size, first)
        own = [unit for units in turns for unit in units if owners[unit] == exchange.rank]
        if self.workers > 1:
            for rows in batches:
                self.condition(step, rows)
        forward = partial(self.backoff.forward, partial(self.predict, step), step)
        with begun(forward, [batches[unit] for unit in own], self.workers) as asked:
            pending = dict(zip(own, asked, strict=True))
            if not exchange.is_alone:
                return self._gathered(step, batches, owners, turns, pending, timings)
            answers = []
            for unit, rows in enumerate(batches):
                with self._recorded(step, timings, rows):
                    answers.append(pending[unit]())
                check_output(step, rows, answers[-1])
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
        """The answers of all ranks, sent round by round while the next ones are computed."""
        answers: dict[Any, Tensor] = {}
        works = []
        for units in turns:
            out = {key: like for unit in units for key, like in _wire(unit, batches[unit], None).items()}
            mine: dict[tuple[int, str], Tensor] = {}
            for unit in (unit for unit in units if owners[unit] == self.exchange.rank):
                with self._recorded(step, timings, batches[unit]):
                    predicted = pending[unit]()
                check_output(step, batches[unit], predicted)
                mine = _wire(unit, batches[unit], predicted)
            owner = {key: owners[key[0]] for key in out}
            works.append(self.exchange.communicator.all_gather_into(out, mine, owner, async_op=True))
            answers |= out
        for work in works:
            assert work is not None
            work.wait()
        return [_unwire(unit, batches[unit], answers) for unit in range(len(batches))]

    def forward(self, step: Step, rows: MicroBatch, timings: Timings) -> ModelOutput:
        """One micro-batch on this rank alone."""
        with self._recorded(step, timings, rows):
            predicted = self.backoff.forward(partial(self.predict, step), step, rows)
        check_output(step, rows, predicted)
        return predicted

    @contextmanager
    def _recorded(self, step: Step, timings: Timings, rows: MicroBatch) -> Iterator[None]:
        """Note the time of a block that gives a micro-batch's answer, unless it raises."""
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
        model_input: Tensor,
        view: View,
        sizes: SizeConditioning | None,
        timings: Timings,
    ) -> Tensor:
        """A question to the network besides the views; see ``Ask``."""
        batches = question(plan, model_input, view, self.row_batch, sizes)
        timings.count(batches)
        return answer(plan, step, self.share(step, batches, timings), len(model_input))


def question(
    plan: RunPlan, model_input: Tensor, view: View, row_batch: int, sizes: SizeConditioning | None = None
) -> list[MicroBatch]:
    """One view's rows in micro-batches of at most ``row_batch``, with the run's own branches."""
    return split_rows(Patches([view]), model_input[None], plan.branches, row_batch, None, sizes=sizes)


def answer(plan: RunPlan, step: Step, answers: Sequence[ModelOutput], batch: int) -> Tensor:
    """Classifier-free guidance over the answers to a question, Float32[Tensor, "batch channels h w"]."""
    import torch

    flat = torch.cat([each.model_output for each in answers])
    rows = flat.view(1, len(plan.branches), batch, *flat.shape[1:])
    return combine_branches(rows, plan.scale_at(step), plan.cfg.rescale)[0]


def _captured(batches: Sequence[MicroBatch]) -> int | None:
    """The micro-batch whose attention maps are wanted: the key view's."""
    return next((unit for unit, rows in enumerate(batches) if rows.capture), None)


def _wire(unit: int, rows: MicroBatch, answer: ModelOutput | None) -> dict[tuple[int, str], Tensor]:
    """An answer as tensors to send, or tensors of that shape to receive into if there is none."""
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


def _unwire(unit: int, rows: MicroBatch, answers: dict[Any, Tensor]) -> ModelOutput:
    """An answer from what was received."""
    predicted = ModelOutput(answers[unit, "output"])
    if rows.capture:
        has_attention, has_content = (bool(flag) for flag in answers[unit, "flags"].tolist())
        maps = answers[unit, "maps"] if has_attention else None
        words = answers.get((unit, "words")) if has_attention else None
        predicted = evolve(predicted, attention=maps, has_content=has_content, words=words)
    return predicted
