"""The views of a step: read, prompted, predicted, masked and guided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from vitrail.core.engine.assembly import gather_views, restore_order
from vitrail.core.engine.guidance_context import Memory
from vitrail.core.engine.resize import inside
from vitrail.core.geometry.views import Span, View
from vitrail.core.method.members import OptionalMasking, recalls
from vitrail.core.method.protocols import Predicted
from vitrail.core.schedule.prediction import Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.guiding import Guiding
    from vitrail.core.engine.layout import Layout
    from vitrail.core.engine.predictor import Predictor
    from vitrail.core.engine.run_state import RunState, Sampled
    from vitrail.core.geometry.views import Patches
    from vitrail.core.method.composition import Stage
    from vitrail.core.method.protocols import MessageGuidance, Rows
    from vitrail.core.schedule.step import Step


@frozen(eq=False)
class Reading:
    """What one family sees at a step.

    Attributes:
        family: 0 is the main one.
        patches: Its views, in canonical order.
        views: Their latents, Float32[Tensor, "views batch channels h w"].
        batches: What the network is shown, in micro-batches.
    """

    family: int
    patches: Patches
    views: Tensor
    batches: list[Rows]


@frozen(kw_only=True, eq=False)
class Viewing:
    """From the canvas to predictions of views.

    Attributes:
        layout: The run.
        predictor: Forwards.
        guiding: The stages' guidance.
    """

    layout: Layout
    predictor: Predictor
    guiding: Guiding

    def predictions(
        self, step: Step, latents: Tensor, done: Sampled
    ) -> tuple[Tensor, list[tuple[Patches, Prediction]]]:
        """The canvas as the step starts from it, and every family's views with what was predicted of them.

        Args:
            step: Where the run stands.
            latents: Float32[Tensor, "batch channels height width"].
            done: How far the run has come; its state is renewed.
        """
        every = self._patches(step, done.state)
        latents, inputs = self._inputs(step, latents, every[0], done)
        is_due = step.stage_step & (step.stage_step - 1) == 0  # 0, 1, 2, 4, 8, ...: soon, and few in a long run
        if is_due and done.state.relay is None:  # before the forwards are shared out, which all ranks must do alike
            done.state.compare()
        scaled = self.layout.phases[step.phase].stepper.scale(latents, step.phase_step)
        found = []
        for family, patches in enumerate(every):
            reading = self._read(step, latents, scaled, inputs if family == 0 else None, patches, family, done)
            predict = self._together if done.state.relay is None else self._own
            found.append((patches, predict(step, latents, reading, done)))
        return latents, found

    def mask_of_canvas(self, step: Step, state: RunState) -> Tensor | None:
        """Where guidance of the canvas acts, if the stage's mask is one that knows the whole picture."""
        knows_whole = OptionalMasking.of(self._stage(step).masking).knows_whole
        return state.mask if knows_whole and self.guiding.acts_at("canvas", step) else None

    def _stage(self, step: Step) -> Stage:
        return self.layout.composition.stages[step.stage]

    def _patches(self, step: Step, state: RunState) -> list[Patches]:
        """The views of every family, noted for the other ranks."""
        every = self.layout.patches(step)
        stage = self._stage(step)
        for patching, patches in zip([stage.patching, *(each.patching for each in stage.also)], every, strict=True):
            who = self.layout.stages.who("patching", step, patching)
            turns = [view.turn for view in patches.views]
            state.note(step, who, (patches.views, turns, patches.key, patches.clean_key))
            if patches.permutation is not None:
                state.note(step, who, patches.permutation)
        return every

    def _inputs(self, step: Step, latents: Tensor, patches: Patches, done: Sampled) -> tuple[Tensor, Tensor | None]:
        """The canvas and its views where a guidance changes each view's own latents; None if none does."""
        if not self.guiding.acts_at("inputs", step):
            return latents, None
        own = gather_views(latents, patches.views)
        views = self.guiding.at("inputs", step, own, done, patches)
        if views is own:
            return latents, None
        canvas = self.layout.stages.fuse(step, patches.views, Prediction(views, views, step), latents, 0)
        return canvas, views

    def _read(
        self,
        step: Step,
        latents: Tensor,
        scaled: Tensor,
        inputs: Tensor | None,
        patches: Patches,
        family: int,
        done: Sampled,
    ) -> Reading:
        """What a family's views see, as the network is shown it."""
        phase = self.layout.phases[step.phase]
        ratio = phase.stepper.scale_ratio(step.phase_step)
        if inputs is None:
            shown = self.predictor.gather(step, scaled, patches, family, phase.canvas, ratio)
        else:
            shown = self.predictor.scaled_early(step, phase.stepper.scale(inputs, step.phase_step), family, ratio)
        texts: Sequence[str | None] = ()
        if family == 0:
            prompting = self._stage(step).prompting
            said = self.predictor.prompt, self.predictor.negative_prompt
            memory = done.state.memory if recalls(prompting) else None
            texts = self.layout.stages.texts(step, *said, patches.views, phase.canvas, memory)
            done.state.note(step, self.layout.stages.who("prompting", step, prompting), texts)
        batches = self.predictor.batches(step, shown, patches, family, texts)
        done.timings.count(batches)
        views = gather_views(latents, patches.views) if inputs is None else inputs
        return Reading(family, patches, views, batches)

    def _together(self, step: Step, latents: Tensor, reading: Reading, done: Sampled) -> Prediction:
        """All views of a family, predicted by all ranks together; those of the main family guided."""
        state, patches, family = done.state, reading.patches, reading.family
        answers = self.predictor.share(step, reading.batches, done.timings)
        state.trail.add_rows(patches, family, reading.batches, answers)
        if family == 0 and self.guiding.acts_at("branches", step):
            branched = self.predictor.branched(step, answers, reading.views, patches)
            output = self.guiding.at("branches", step, branched, done, patches).combined
        else:
            output = restore_order(self.predictor.combine(step, answers, len(latents), family), patches)
        state.trail.add_views("classifier-free guidance", patches, family, output)
        views = Prediction(reading.views, output, step)
        if family == 0:
            key = evolve(views, latents=views.latents[patches.key], model_output=output[patches.key])
            seen = next((a for a in answers if a.attention is not None), answers[0])
            self._remember(step, seen, state, patches)
            mask = self._mask_of_views(step, key, seen, state, patches)
            views = self.guiding.at("views", step, views, done, patches, mask)
        return views

    def _own(self, step: Step, latents: Tensor, reading: Reading, done: Sampled) -> Prediction:
        """The views of this rank, predicted and guided; what stands for the others' is of no consequence."""
        relay, trail = done.state.relay, done.state.trail
        assert relay is not None

        def combine(answers: Sequence[Predicted]) -> Tensor:
            trail.add_rows(reading.patches, reading.family, reading.batches, answers)
            return self.predictor.combine(step, answers, len(latents))

        def tell(guidance: MessageGuidance, key: Prediction, seen: Predicted) -> Tensor:
            mask = self._mask_of_views(step, key, seen, done.state, reading.patches)
            alone = evolve(key, latents=key.latents[None], model_output=key.model_output[None])
            return self.layout.stages.tell(step, guidance, alone, 0, mask)

        def forward(rows: Rows) -> Predicted:
            return self.predictor.forward(step, rows, done.timings)

        views = relay.predict(step, latents, reading.batches, forward, combine, tell, self.layout.stages.follow)
        if relay.guidance is not None:
            trail.add_message(lambda: relay.message(step))
            trail.add_guided(relay.guidance, views, reading.patches)
        return views

    def _remember(self, step: Step, seen: Predicted, state: RunState, patches: Patches) -> None:
        """Keep the maps of every word, without the padding, if the stage does."""
        if self._stage(step).remember and seen.words is not None:
            inner = inside(patches.views[patches.key], self.layout.phases[step.phase].canvas)
            maps = seen.words[..., : inner[0], : inner[1]].contiguous()
            state.memory = Memory(self.predictor.words, maps) if state.memory is None else state.memory.seen(maps)

    def _mask_of_views(
        self, step: Step, key: Prediction, seen: Predicted, state: RunState, patches: Patches
    ) -> Tensor | None:
        """Where guidance acts on views, from the key view's prediction and attention.

        Returns:
            Of the key view, Float32[Tensor, "batch 1 h w"]; or of every view its own cut of the canvas's mask,
            Float32[Tensor, "views batch 1 h w"], if the stage's mask knows the whole picture.
        """
        import torch

        if not OptionalMasking.of(self._stage(step).masking).knows_whole:
            return self._mask(step, key, seen, state, patches.views[patches.key])
        canvas = self.layout.phases[step.phase].canvas
        state.mask = self._mask(step, key, seen, state, View(Span(0, canvas.height), Span(0, canvas.width)))
        return None if state.mask is None else torch.stack([view.read(state.mask) for view in patches.views])

    def _mask(self, step: Step, key: Prediction, seen: Predicted, state: RunState, view: View) -> Tensor | None:
        """Where guidance acts in a view, Float32[Tensor, "batch 1 h w"], or None for everywhere."""
        canvas, masking = self.layout.phases[step.phase].canvas, self._stage(step).masking
        wanted = evolve(
            seen,
            model_output=key.model_output,
            memory=state.memory if recalls(masking) else None,
            view=view,
            canvas=canvas,
            inner=inside(view, canvas),
        )
        mask, state.masking = self.layout.stages.mask(step, key, wanted, state.masking, state.trail)
        if mask is not None:
            state.note(step, self.layout.stages.who("masking", step, masking), mask)
        return mask
