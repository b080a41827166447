"""One step of a run on a canvas: one formula, one scheduler step.

    noise prediction of the canvas = fuse(guide(predict(views of the latents), mask))

Everything but ``predict`` is cheap and the same on every rank; the plan decides where micro-batches are predicted,
which does not affect the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.engine.captured import joined, kept_maps
from vitrail.core.engine.guidance_context import Branches
from vitrail.core.engine.micro_batches import combine_branches, gather_views, mix_groups, restore_order
from vitrail.core.engine.nonfinite import GIVEN, SCHEDULER, NonFiniteSearch
from vitrail.core.engine.plan import ClassifierFree, RunPlan
from vitrail.core.engine.reading import ViewReader
from vitrail.core.engine.resize import inside
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.members import OptionalMasking, recalls
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.backdrops import Backdrops
    from vitrail.core.engine.forwards import Forwards
    from vitrail.core.engine.guidance_points import GuidancePoints
    from vitrail.core.engine.reading import Reading
    from vitrail.core.engine.run_state import RunState, Sampled
    from vitrail.core.geometry.views import Patches
    from vitrail.core.method.micro_batch import MicroBatch, ModelOutput
    from vitrail.core.method.protocols import MessageGuidance
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen(kw_only=True, eq=False)
class Engine:
    """Do the steps of one picture.

    Attributes:
        plan: What the run does.
        forwards: Calls of the network.
        guidance: Guidance of all stages.
        streams: The run's random streams.
        backdrops: What regions are asked with outside of themselves.
        words: Words of the prompt and of every region's, if their attention maps are kept.
        prompt: The run's prompt.
        negative_prompt: The run's negative prompt, or None.
        watched: Whether an observer reads the canvas after every step, so that it must be complete.
        cell: Side of a latent cell in pixels, for messages.
    """

    plan: RunPlan
    forwards: Forwards
    guidance: GuidancePoints
    streams: Streams
    backdrops: Backdrops
    words: tuple[tuple[str, ...], ...] = field(default=((),), converter=as_tuple)
    prompt: str = ""
    negative_prompt: str | None = None
    watched: bool = False
    cell: int = 1

    def step(self, step: Step, done: Sampled) -> tuple[Tensor, Prediction]:
        """Do one step; update the strategies' state in ``done``.

        Args:
            step: The step to do.
            done: State of the picture before it.

        Returns:
            The new latents, Float32[Tensor, "batch channels height width"], and the canvas's prediction.
        """
        plan, state, stage, stepper = self.plan, done.state, self.plan.stage(step), self.plan.phase(step).stepper
        state.nonfinite = NonFiniteSearch(self.cell)
        state.nonfinite.add("what it began with", done.latents, GIVEN)
        state.note(step, "the picture so far", done.latents)
        latents = self._again(step, done.latents) if step.repeat else done.latents
        latents = self.guidance.at("before", step, latents, done)

        every = self._patches(step, state)
        latents, inputs = self._inputs(step, latents, every[0], done)
        is_due = step.stage_step & (step.stage_step - 1) == 0  # 0, 1, 2, 4, 8, ...: early, and rare in a long run
        if state.independent is None and (is_due or self.forwards.exchange.asks_for_speeds(step)):
            state.compare(before=step)  # before forwards are assigned, which must be the same on all ranks
        scaled = stepper.scale(latents, step.phase_step)

        predict = self._predict if state.independent is None else self._predict_own
        reader = self.reader
        outputs = []
        for group, patches in enumerate(every):
            reading = reader.read(step, latents, scaled, inputs if group == 0 else None, patches, group, done)
            views = predict(step, latents, reading, done)
            outputs.append(plan.hooks.fuse(step, patches.views, views, latents, group))
            state.nonfinite.add(f"fusion of view group {group}", outputs[-1], "look at its weights")
            fusion = stage.fusion if group == 0 else stage.extra_views[group - 1].fusion
            state.note(step, plan.hooks.who("fusion", step, fusion), outputs[-1])

        prediction = Prediction(latents, mix_groups(outputs, stage.extra_views, step), step)
        prediction = self.guidance.at("canvas", step, prediction, done, mask=self._mask_of_canvas(step, state))

        noise = self.streams.generator("step-noise", step.index)
        latents = stepper.step(prediction.model_output, step.phase_step, latents, noise)
        state.nonfinite.add("the scheduler's step", latents, SCHEDULER)
        state.note(step, "the scheduler", latents)
        latents = self.guidance.at("after", step, latents, done)
        state.nonfinite.check_sync(step, latents)
        plan.hooks.step_end(step, latents, prediction)
        return latents, prediction

    def guided(self, guidance_scale: float, guidance_rescale: float) -> Engine:
        """Return an engine with other classifier-free guidance; a scale of 1 or less predicts the text's branch only.

        Args:
            guidance_scale: Weight of the difference between the branches; above 1 only if both are encoded.
            guidance_rescale: Share of the contrast that is undone.
        """
        cfg = ClassifierFree.of(guidance_scale, guidance_rescale)
        if cfg == self.plan.cfg:
            return self
        plan = evolve(self.plan, cfg=cfg)
        gradients = self.guidance.gradients
        gradients = None if gradients is None else evolve(gradients, plan=plan)
        return evolve(self, plan=plan, guidance=evolve(self.guidance, plan=plan, gradients=gradients))

    @property
    def reader(self) -> ViewReader:
        """What reads views from the canvas."""
        return ViewReader(
            plan=self.plan,
            guidance=self.guidance,
            backdrops=self.backdrops,
            row_batch=self.forwards.row_batch,
            words=self.words,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
        )

    def _again(self, step: Step, latents: Tensor) -> Tensor:
        """Return the latents with the noise of a step that is done again."""
        noise = self.streams.normal(tuple(latents.shape), "noise of a repeat", step.index)
        return self.plan.phase(step).stepper.again(latents, noise.to(latents.device), step.phase_step)

    def _patches(self, step: Step, state: RunState) -> list[Patches]:
        """Return the views of every group, recorded for comparison between ranks."""
        every, stage = self.plan.patches(step), self.plan.stage(step)
        patchings = [stage.patching, *(group.patching for group in stage.extra_views)]
        for patching, patches in zip(patchings, every, strict=True):
            who = self.plan.hooks.who("patching", step, patching)
            rolls = [view.roll for view in patches.views]
            state.note(step, who, (patches.views, rolls, patches.key, patches.clean_key))
            if patches.permutation is not None:
                state.note(step, who, patches.permutation)
        return every

    def _inputs(self, step: Step, latents: Tensor, patches: Patches, done: Sampled) -> tuple[Tensor, Tensor | None]:
        """Return the canvas and the views that guidance at "inputs" changed; None for the views if none did."""
        if not self.guidance.acts_at("inputs", step):
            return latents, None
        own = gather_views(latents, patches.views)
        views = self.guidance.at("inputs", step, own, done, patches)
        if views is own:
            return latents, None
        canvas = self.plan.hooks.fuse(step, patches.views, Prediction(views, views, step), latents, 0)
        return canvas, views

    def _predict(self, step: Step, latents: Tensor, reading: Reading, done: Sampled) -> Prediction:
        """Predict all views of a group on all ranks together; guide those of the main group."""
        state, patches, group = done.state, reading.patches, reading.group
        answers = self.forwards.share(step, reading.batches, done.timings)
        state.nonfinite.add_rows(patches, group, reading.batches, answers, reading.entries)
        if group == 0 and self.guidance.acts_at("branches", step):
            branched = self._branched(step, answers, reading)
            output = self.guidance.at("branches", step, branched, done, patches).combined
        else:
            output = restore_order(self.combined(step, answers, reading), patches)
        state.nonfinite.add_views("classifier-free guidance", patches, group, output)
        views = Prediction(reading.views, output, step)
        if group == 0:
            key = evolve(views, latents=views.latents[patches.key], model_output=output[patches.key])
            seen = self._seen(answers, reading)
            self._remember(step, answers, reading, state)
            mask = self._mask_of_views(step, key, seen, state, patches)
            views = self.guidance.at("views", step, views, done, patches, mask)
        return views

    def _predict_own(self, step: Step, latents: Tensor, reading: Reading, done: Sampled) -> Prediction:
        """Predict and guide this rank's views; the entries of other ranks' views are unused."""
        independent, nonfinite = done.state.independent, done.state.nonfinite
        assert independent is not None

        def combine(answers: Sequence[ModelOutput]) -> Tensor:
            nonfinite.add_rows(reading.patches, reading.group, reading.batches, answers, reading.entries)
            return self.combined(step, answers, reading)

        def tell(guidance: MessageGuidance, key: Prediction, seen: ModelOutput) -> Tensor:
            mask = self._mask_of_views(step, key, seen, done.state, reading.patches)
            alone = evolve(key, latents=key.latents[None], model_output=key.model_output[None])
            return self.plan.hooks.tell(step, guidance, alone, 0, mask)

        def forward(rows: MicroBatch) -> ModelOutput:
            return self.forwards.forward(step, rows, done.timings)

        views = independent.predict(step, latents, reading.batches, forward, combine, tell, self.plan.hooks.follow)
        if independent.guidance is not None:
            nonfinite.add_message(lambda: independent.message(step))
            nonfinite.add_guided(independent.guidance, views, reading.patches)
        return views

    def _rows(self, step: Step, answers: Sequence[ModelOutput], reading: Reading) -> Tensor:
        """Return the outputs of all branches, Float32[Tensor, "views branches batch channels h w"], texts mixed."""
        import torch

        flat, batch = torch.cat([answer.model_output for answer in answers]), reading.views.shape[1]
        rows = flat.view(-1, len(self.plan.branches_at(step, reading.group)), batch, *flat.shape[1:])
        return reading.asked.mixed(rows)

    def combined(self, step: Step, answers: Sequence[ModelOutput], reading: Reading) -> Tensor:
        """Apply classifier-free guidance to the outputs of all views, Float32[Tensor, "views batch channels h w"].

        Args:
            step: Position of the run.
            answers: Outputs of all micro-batches, in order.
            reading: What was asked.
        """
        rows = self._rows(step, answers, reading)[:, : len(self.plan.views_branches(step))]
        return combine_branches(rows, self.plan.scale_at(step), self.plan.cfg.rescale)

    def _branched(self, step: Step, answers: Sequence[ModelOutput], reading: Reading) -> Branches:
        """Return the main group's separate branches, in the order of the views, for a guidance that combines them."""
        rows = self._rows(step, answers, reading)
        named = {b: restore_order(rows[:, i], reading.patches) for i, b in enumerate(self.plan.branches_at(step))}
        usual = restore_order(self.combined(step, answers, reading), reading.patches)
        return Branches(named, self.plan.scale_at(step), usual, reading.views, self.plan.cfg.rescale)

    def _seen(self, answers: Sequence[ModelOutput], reading: Reading) -> ModelOutput:
        """Return the answer with the key view's attention: each cell's is that of the words of its own texts."""
        captured = _captured(answers, reading)
        if reading.asked.is_plain or not captured:
            return next((a for a in answers if a.attention is not None), answers[0])
        return joined(captured, reading.asked.weights(reading.patches.key_entry))

    def _remember(self, step: Step, answers: Sequence[ModelOutput], reading: Reading, state: RunState) -> None:
        """Keep the attention maps of every word, without padding, if the stage asks for it."""
        if not self.plan.stage(step).remember:
            return
        captured = _captured(answers, reading)
        inner = inside(reading.patches.views[reading.patches.key], self.plan.phase(step).canvas)
        texts = [text for _, text in reading.asked.texts_of(reading.patches.key_entry)]
        own = next((i for i, text in enumerate(texts) if self.plan.regions.texts(text) == (None, None)), None)
        weights = None if reading.asked.is_plain else reading.asked.weights(reading.patches.key_entry)
        maps = kept_maps(captured, [self.words[text] for text in texts], own, weights, inner)
        if maps is not None:
            state.memory = maps if state.memory is None else state.memory.seen(maps)

    def _mask_of_canvas(self, step: Step, state: RunState) -> Tensor | None:
        """Return the mask for guidance of the canvas, if the stage's mask covers the whole canvas."""
        knows_whole = OptionalMasking.of(self.plan.stage(step).masking).knows_whole
        return state.mask if knows_whole and self.guidance.acts_at("canvas", step) else None

    def _mask_of_views(
        self, step: Step, key: Prediction, seen: ModelOutput, state: RunState, patches: Patches
    ) -> Tensor | None:
        """Return the mask for guidance of views, from the key view's prediction and attention.

        Returns:
            The key view's mask, Float32[Tensor, "batch 1 h w"]; or, if the stage's mask covers the whole canvas, its
            crop for every view, Float32[Tensor, "views batch 1 h w"].
        """
        import torch

        if not OptionalMasking.of(self.plan.stage(step).masking).knows_whole:
            return self._mask(step, key, seen, state, patches.views[patches.key])
        canvas = self.plan.phase(step).canvas
        state.mask = self._mask(step, key, seen, state, View(Span(0, canvas.height), Span(0, canvas.width)))
        return None if state.mask is None else torch.stack([view.read(state.mask) for view in patches.views])

    def _mask(self, step: Step, key: Prediction, seen: ModelOutput, state: RunState, view: View) -> Tensor | None:
        """Return the mask of a view, Float32[Tensor, "batch 1 h w"], or None for everywhere."""
        canvas, masking = self.plan.phase(step).canvas, self.plan.stage(step).masking
        wanted = evolve(
            seen,
            model_output=key.model_output,
            memory=state.memory.of_all_texts if recalls(masking) and state.memory is not None else None,
            view=view,
            canvas=canvas,
            inner=inside(view, canvas),
        )
        mask, state.masking = self.plan.hooks.mask(step, key, wanted, state.masking, state.nonfinite)
        if mask is not None:
            state.note(step, self.plan.hooks.who("masking", step, masking), mask)
        return mask


def _captured(answers: Sequence[ModelOutput], reading: Reading) -> list[ModelOutput]:
    """Return the answers with attention maps: one for every text of the key view."""
    return [answer for rows, answer in zip(reading.batches, answers, strict=True) if rows.capture]
