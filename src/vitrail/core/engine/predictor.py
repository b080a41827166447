"""From the views of one family to their predictions, by all ranks together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.engine.assembly import combine_branches, gather_views, permute_views, restore_order, split_rows
from vitrail.core.engine.guidance_context import Branches
from vitrail.core.engine.layout import branches_of
from vitrail.core.geometry.views import Patches

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.exchange import Exchange
    from vitrail.core.engine.forwarding import Forwarding
    from vitrail.core.engine.hooks import Stages
    from vitrail.core.engine.run_state import Timings
    from vitrail.core.geometry.size_conditioning import SizeConditioning
    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.composition import Composition, Stage
    from vitrail.core.method.protocols import Branch, Predicted, Rows
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True, eq=False)
class Predictor:
    """What a run knows about forwards.

    Attributes:
        composition: Stages with strategies.
        stages: The run's hooks.
        exchange: The ranks.
        forwarding: This rank's forwards.
        branches: CFG branches of the run.
        guidance_scale: Of classifier-free guidance.
        guidance_rescale: See ``combine_branches``.
        row_batch: Rows a forward, at most.
        condition: Encodes what a micro-batch is conditioned on, if that was not done yet.
        workers: Micro-batches that are computed side by side.
        words: Of the prompt, if their attention maps are wanted.
        prompt: The run's.
        negative_prompt: The run's, or None.
    """

    composition: Composition
    stages: Stages
    exchange: Exchange
    forwarding: Forwarding
    branches: tuple[Branch, ...]
    guidance_scale: float
    guidance_rescale: float
    row_batch: int
    condition: Callable[[Step, Rows], object]
    workers: int = 1
    words: tuple[str, ...] = field(default=(), converter=as_tuple)
    prompt: str = ""
    negative_prompt: str | None = None

    def branches_of(self, step: Step, family: int = 0) -> tuple[Branch, ...]:
        """The CFG branches of a step; a guidance may want further ones for the main family."""
        return branches_of(self._stage(step), step, self.branches, family)

    def _stage(self, step: Step) -> Stage:
        return self.composition.stages[step.stage]

    def batches(
        self,
        step: Step,
        scaled: Tensor,
        patches: Patches,
        family: int,
        texts: Sequence[str | None] = (),
    ) -> list[Rows]:
        """One family's rows in micro-batches: gathered, permuted, cut in canonical order.

        Args:
            step: Where the run stands.
            scaled: The views as the network wants them, Float32[Tensor, "views batch channels h w"].
            patches: The views, in canonical order.
            family: 0 is the main one.
            texts: Of the views; () for the run's prompt.
        """
        stage, capture = self._stage(step), None
        if family == 0 and (stage.masking.request is not None or stage.remember):
            capture = len(patches.views) if patches.clean_key else patches.key
        return split_rows(
            patches,
            permute_views(scaled, patches),
            self.branches_of(step, family),
            self.row_batch,
            capture,
            texts=texts,
            words=len(self.words) if stage.remember else 0,
        )

    def gather(self, step: Step, scaled: Tensor, patches: Patches, family: int, canvas: Canvas, ratio: float) -> Tensor:
        """What the views of a family see of the scaled latents, Float32[Tensor, "views batch channels h w"].

        Args:
            step: Where the run stands.
            scaled: The canvas as the network wants it, Float32[Tensor, "batch channels height width"].
            patches: The views.
            family: 0 is the main one.
            canvas: Of the phase.
            ratio: The scale of the next step over that of this one, for ``Stage.scale_batch``.
        """
        read = gather_views(self.stages.prepare(step, scaled, canvas, family), patches.views)
        return self.scaled_early(step, read, family, ratio)

    def scaled_early(self, step: Step, read: Tensor, family: int, ratio: float) -> Tensor:
        """A family's input, with the scale that came too early in the authors' code if the stage has a ``scale_batch``.

        Args:
            step: Where the run stands.
            read: As the network wants it, Float32[Tensor, "views batch channels h w"].
            family: 0 is the main one.
            ratio: The scale of the next step over that of this one.
        """
        count = self._stage(step).scale_batch
        if count is None:
            return read
        shown = read.clone()
        shown[count if family == 0 else 0 :] *= ratio
        return shown

    def forward(self, step: Step, rows: Rows, timings: Timings) -> Predicted:
        """One micro-batch through the network."""
        with self._recorded(step, rows, timings):
            return self._forward(step, rows)

    def share(self, step: Step, batches: Sequence[Rows], timings: Timings) -> list[Predicted]:
        """Every rank's answers on every rank."""
        if self.workers > 1:
            for rows in batches:
                self.condition(step, rows)
        return self.exchange.share(
            batches,
            lambda rows: self._forward(step, rows),
            lambda rows: self._recorded(step, rows, timings),
            self.workers,
        )

    def _forward(self, step: Step, rows: Rows) -> Predicted:
        return self.forwarding.forward(step, rows, lambda part: self.stages.predict(step, part))

    @contextmanager
    def _recorded(self, step: Step, rows: Rows, timings: Timings) -> Iterator[None]:
        """Note the time of a block that gives a micro-batch's answer, unless it raises."""
        started, trace = time.perf_counter(), self.exchange.communicator.trace
        with trace.span("compute", f"step {step.index}", step=step.index, stage=step.stage, rows=len(rows.views)):
            yield
        timings.predict_s += time.perf_counter() - started

    def scale_at(self, step: Step) -> float:
        """The guidance scale of a step."""
        return self.guidance_scale * self._stage(step).guidance_factor

    def combine(self, step: Step, answers: Sequence[Predicted], batch: int, family: int = 0) -> Tensor:
        """Classifier-free guidance over the answers of all views, Float32[Tensor, "views batch channels h w"]."""
        rows = self._rows(step, answers, batch, family)[:, : len(self.branches)]
        return combine_branches(rows, self.scale_at(step), self.guidance_rescale)

    def branched(self, step: Step, answers: Sequence[Predicted], latents: Tensor, patches: Patches) -> Branches:
        """The main family's branches apart, in the views' own order, for a guidance that combines them.

        Args:
            step: Where the run stands.
            answers: Of all micro-batches.
            latents: Of the views, Float32[Tensor, "views batch channels h w"].
            patches: With the permutation that the input was read through.
        """
        rows = self._rows(step, answers, latents.shape[1], 0)
        named = {b: restore_order(rows[:, i], patches) for i, b in enumerate(self.branches_of(step))}
        usual = restore_order(self.combine(step, answers, latents.shape[1]), patches)
        return Branches(named, self.scale_at(step), usual, latents, self.guidance_rescale)

    def _rows(self, step: Step, answers: Sequence[Predicted], batch: int, family: int) -> Tensor:
        import torch

        flat = torch.cat([answer.model_output for answer in answers])
        return flat.view(-1, len(self.branches_of(step, family)), batch, *flat.shape[1:])

    def ask(
        self, step: Step, model_input: Tensor, view: View, sizes: SizeConditioning | None, timings: Timings
    ) -> Tensor:
        """A question to the network besides the views; see ``Ask``."""
        batches = self.question(model_input, view, self.row_batch, sizes)
        timings.count(batches)
        return self.answer(step, self.share(step, batches, timings), len(model_input))

    def question(
        self, model_input: Tensor, view: View, row_batch: int, sizes: SizeConditioning | None = None
    ) -> list[Rows]:
        """One view's rows in micro-batches of at most ``row_batch``, with the run's own branches."""
        return split_rows(Patches([view]), model_input[None], self.branches, row_batch, None, sizes=sizes)

    def answer(self, step: Step, answers: Sequence[Predicted], batch: int) -> Tensor:
        """Classifier-free guidance over the answers to a question, Float32[Tensor, "batch channels h w"]."""
        import torch

        flat = torch.cat([answer.model_output for answer in answers])
        rows = flat.view(1, len(self.branches), batch, *flat.shape[1:])
        return combine_branches(rows, self.scale_at(step), self.guidance_rescale)[0]
