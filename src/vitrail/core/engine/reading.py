"""The network's input at a step: views, each with the texts that it is asked with, split into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.engine.asked import AskedEntry
from vitrail.core.engine.micro_batches import gather_views, permute_views, split_rows
from vitrail.core.method.members import recalls
from vitrail.errors import CompositionError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.engine.asked import AskedPairs
    from vitrail.core.engine.backdrops import Backdrops
    from vitrail.core.engine.guidance_points import GuidancePoints
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.engine.run_state import RunState, Sampled
    from vitrail.core.geometry.views import Patches, View
    from vitrail.core.method.micro_batch import MicroBatch
    from vitrail.core.schedule.step import Step


@frozen(eq=False)
class Reading:
    """The input of one view group at a step.

    Attributes:
        group: Number of the view group; 0 is the main one.
        patches: Its views, in canonical order.
        views: Their latents, Float32[Tensor, "views batch channels h w"].
        batches: The rows for the network, in micro-batches.
        asked: Which views are asked with which texts.
    """

    group: int
    patches: Patches
    views: Tensor
    batches: list[MicroBatch]
    asked: AskedPairs

    @property
    def entries(self) -> list[int]:
        """Number of the view of every question, the number of views for a clean key view."""
        return [entry for entry, _ in self.asked.pairs]


@frozen(kw_only=True, eq=False)
class ViewReader:
    """Read views from a canvas.

    Attributes:
        plan: What the run does.
        guidance: Has the VAE that backdrops need.
        backdrops: What regions are asked with outside of themselves.
        row_batch: Largest number of rows per forward.
        words: Words of the prompt and of every region's, if their attention maps are kept.
        prompt: The run's prompt.
        negative_prompt: The run's negative prompt, or None.
    """

    plan: RunPlan
    guidance: GuidancePoints
    backdrops: Backdrops
    row_batch: int
    words: tuple[tuple[str, ...], ...] = field(converter=as_tuple)
    prompt: str
    negative_prompt: str | None

    def read(
        self,
        step: Step,
        latents: Tensor,
        scaled: Tensor,
        inputs: Tensor | None,
        patches: Patches,
        group: int,
        done: Sampled,
    ) -> Reading:
        """Return the input of a view group, split into micro-batches.

        Args:
            step: Position of the run.
            latents: The canvas, Float32[Tensor, "batch channels height width"].
            scaled: The canvas as the network expects it.
            inputs: The views, where guidance at "inputs" changed them, Float32[Tensor, "views batch channels h w"].
            patches: The views of the group.
            group: Number of the view group.
            done: State of the picture, updated.
        """
        plan = self.plan
        hooks, canvas = plan.hooks, plan.phase(step).canvas
        if inputs is None:
            shown = gather_views(hooks.prepare(step, scaled, canvas, group), patches.views)
        else:
            shown = plan.phase(step).stepper.scale(inputs, step.phase_step)
        if plan.fills_up(step, group):
            shown = self._filled_up(step, latents, shown, patches.views, done)
        pairs = plan.regions.asked(canvas, patches)
        texts: Sequence[str | None] = ()
        captured: int | None = None
        if group == 0:
            texts, captured = self._texts(step, patches, done.state)
            done.state.note(step, hooks.who("prompting", step, plan.stage(step).prompting), texts)
        batches = split_rows(
            [self._asked(step, patches, texts, captured, *pair) for pair in pairs.pairs],
            self._inputs_of_pairs(step, latents, shown, patches, group, pairs, done),
            plan.branches_at(step, group),
            self.row_batch,
        )
        done.timings.count(batches, plan, step)
        views = gather_views(latents, patches.views) if inputs is None else inputs
        return Reading(group, patches, views, batches, pairs)

    def outline(
        self, step: Step, latents: Tensor, patches: Patches, done: Sampled
    ) -> tuple[list[MicroBatch], Sequence[str | None]]:
        """Return the main group's micro-batches without their input, for views that are read one by one; and the texts.

        Args:
            step: Position of the run, of a stage without regions.
            latents: The canvas, for batch, channels and type.
            patches: The views of the main group.
            done: State of the picture; its timings count the rows.

        Returns:
            Micro-batches whose input is on the ``meta`` device, and the texts of the views, () if all have the prompt.
        """
        import torch

        texts, captured = self._texts(step, patches, done.state)
        shape = (len(patches.views), *latents.shape[:2], *patches.views[0].shape)
        batches = split_rows(
            [self._asked(step, patches, texts, captured, entry, 0) for entry in range(len(patches.views))],
            torch.empty(shape, dtype=latents.dtype, device="meta"),
            self.plan.branches_at(step),
            self.row_batch,
        )
        done.timings.count(batches, self.plan, step)
        return batches, texts

    def _texts(self, step: Step, patches: Patches, state: RunState) -> tuple[Sequence[str | None], int | None]:
        """Return the texts of the main group's views, () if all have the prompt, and the entry that is captured."""
        plan, stage, hooks = self.plan, self.plan.stage(step), self.plan.hooks
        kept = state.memory if recalls(stage.prompting) else None
        memory = kept if kept is None or kept.words else None
        canvas = plan.phase(step).canvas
        texts = hooks.texts(step, self.prompt, self.negative_prompt, patches.views, canvas, memory)
        return texts, patches.key_entry if stage.masking.request is not None or stage.remember else None

    def _filled_up(self, step: Step, latents: Tensor, shown: Tensor, views: Sequence[View], done: Sampled) -> Tensor:
        """Return the views with a noised plain colour in the cells that they have beyond the canvas.

        Args:
            step: Position of the run.
            latents: The canvas, for channels and device.
            shown: Scaled latents of the views, Float32[Tensor, "views batch channels h w"].
            views: The views.
            done: State of the picture.
        """
        import torch

        if not any(view.leaves for view in views):
            return shown
        vae = self.guidance.vae_of_background(step, done.timings)
        around = self.backdrops.beyond(step, views[0].shape, latents, vae)
        around = self.plan.phase(step).stepper.scale(around, step.phase_step)
        inside = gather_views(torch.ones_like(latents[:1, :1]), views) > 0
        return torch.where(inside, shown, around.expand_as(shown))

    def _asked(
        self,
        step: Step,
        patches: Patches,
        texts: Sequence[str | None],
        captured: int | None,
        entry: int,
        text: int,
    ) -> AskedEntry:
        """Return what one entry of the input is asked with: by a region's texts, or those of its view or the run."""
        number = patches.key if entry == len(patches.views) else entry
        prompt, negative = self.plan.regions.texts(text)
        is_own = prompt is None and negative is None
        if is_own and texts:
            prompt = texts[number]
        if entry != captured:
            return AskedEntry(patches.views[number], prompt, negative)
        remembers = self.plan.stage(step).remember
        if remembers and is_own and prompt is not None:
            raise CompositionError(
                f"stage {step.stage + 1} keeps the attention maps of the prompt's words, but its prompting asks the "
                f"key view with {prompt!r}; remember in a stage of its own"
            )
        words = len(self.words[text]) if remembers else 0
        return AskedEntry(patches.views[number], prompt, negative, is_captured=True, words=words)

    def _inputs_of_pairs(
        self,
        step: Step,
        latents: Tensor,
        shown: Tensor,
        patches: Patches,
        group: int,
        pairs: AskedPairs,
        done: Sampled,
    ) -> Tensor:
        """Return the network's input of every pair, Float32[Tensor, "pairs batch channels h w"].

        A region that is bootstrapped sees its own cells of the canvas, and a plain colour in place of all others.

        Args:
            step: Position of the run.
            latents: The canvas.
            shown: Scaled latents of the views, Float32[Tensor, "views batch channels h w"].
            patches: The views.
            group: Number of the view group.
            pairs: Which views are asked with which texts.
            done: State of the picture.
        """
        import torch

        plan, canvas = self.plan, self.plan.phase(step).canvas
        found = pairs.inputs(permute_views(self._scaled_early(step, shown, patches, group), patches))
        is_first = step.index == plan.first  # a resumed run encodes again what was counted then
        vae = self.guidance.counted_vae(done.timings) if is_first else self.guidance.vae
        for text in plan.regions.bootstrapped(step, canvas):
            own = [number for number, (_, each) in enumerate(pairs.pairs) if each == text]
            if not own:
                continue
            backdrop = plan.phase(step).stepper.scale(self.backdrops.canvas(step, text, latents, vae), step.phase_step)
            plain = gather_views(plan.hooks.prepare(step, backdrop, canvas, group), patches.views)
            inside = (gather_views(plan.regions.shares(canvas)[text], patches.views) > 0)[:, None, None]
            apart = torch.where(inside.to(shown.device), shown, plain.expand_as(shown))
            entries = permute_views(self._scaled_early(step, apart, patches, group), patches)
            found[own] = entries[[pairs.pairs[number][0] for number in own]]
        return found

    def _scaled_early(self, step: Step, shown: Tensor, patches: Patches, group: int) -> Tensor:
        """Scale some views for the next step, or not at all, as in the authors' code, if the stage asks for it.

        That code takes views in batches as they are laid out, so they are counted in that order.
        """
        stage, phase = self.plan.stage(step), self.plan.phase(step)
        if stage.scale_batch is None:
            return shown
        begins = stage.unscaled_start and step.phase_step == phase.first
        early = phase.stepper.input_norm(step.phase_step) if begins else 1.0
        late = phase.stepper.scale_ratio(step.phase_step)
        shown = shown.clone()
        for row, number in enumerate(patches.numbers or range(len(shown))):
            shown[row] *= early if group == 0 and number < stage.scale_batch else late
        return shown
