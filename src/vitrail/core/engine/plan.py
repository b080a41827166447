"""The plan of a run: what it will do, step by step, and its cost; known before any model call."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.engine.regions import Regions
from vitrail.core.method.cost import Cost
from vitrail.core.method.members import (
    OptionalGuidance,
    OptionalPatching,
    OptionalRectification,
    has_own,
    points_of,
)
from vitrail.core.method.returned_values import check_branches, check_count, check_flag
from vitrail.core.schedule.phase import steps_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitrail.core.engine.hooks import Hooks
    from vitrail.core.geometry.views import Canvas, Outline, Patches
    from vitrail.core.method.composition import Composition
    from vitrail.core.method.micro_batch import Branch
    from vitrail.core.method.protocols import Upscaler
    from vitrail.core.method.stage import Stage
    from vitrail.core.schedule.phase import Phase
    from vitrail.core.schedule.step import Step

COLOURS = 8  # plain colours that stand for what lies outside a region, encoded once a run


@frozen
class ClassifierFree:
    """Classifier-free guidance of a run.

    Attributes:
        branches: ``("uncond", "cond")``, or only ``("cond",)`` if it is off.
        scale: Weight of the difference between the branches.
        rescale: See ``combine_branches``.
    """

    branches: tuple[Branch, ...] = field(converter=as_tuple)
    scale: float = 1.0
    rescale: float = 0.0

    @classmethod
    def of(cls, scale: float, rescale: float) -> ClassifierFree:
        """Return the guidance of a scale and a rescale; a scale of 1 or less switches it off."""
        return cls(("uncond", "cond") if scale > 1 else ("cond",), scale, rescale)


@frozen(kw_only=True, eq=False)
class RunPlan:
    """What a run will do; built once, before the first step.

    Attributes:
        hooks: Hooks of the run, which hold the composition.
        phases: Phases of the run, each with a canvas and a scheduler; the last has the size that is decoded.
        cfg: Classifier-free guidance.
        enlarged: Height and width, pixels, to which the method's ``finish`` brings the decoded picture; None if that
            has the wanted size.
        regions: Parts of the picture with prompts of their own.
        remembers: Whether the network remembers earlier forwards, so that their order is not free.
    """

    hooks: Hooks
    phases: tuple[Phase, ...] = field(converter=as_tuple)
    cfg: ClassifierFree
    enlarged: tuple[int, int] | None = None
    regions: Regions = field(factory=Regions)
    remembers: bool = False

    @property
    def composition(self) -> Composition:
        """The method."""
        return self.hooks.composition

    @property
    def branches(self) -> tuple[Branch, ...]:
        """CFG branches that the run encodes."""
        return self.cfg.branches

    def own_branches(self, step: Step) -> tuple[Branch, ...]:
        """Return the CFG branches of a step, without those that a guidance adds."""
        return self.cfg.branches if self.stage(step).is_guided(step) else ("cond",)

    def views_branches(self, step: Step) -> tuple[Branch, ...]:
        """Return the CFG branches that every view is asked with: those of the step, unless a guidance limits them."""
        limits = (OptionalGuidance.of(guidance).views_branches for guidance in self.stage(step).guidance)
        return next(filter(None, limits), self.own_branches(step))

    def stage(self, step: Step) -> Stage:
        """Return the stage of a step."""
        return self.composition.stages[step.stage]

    def phase(self, step: Step) -> Phase:
        """Return the phase of a step."""
        return self.phases[step.phase]

    def scale_at(self, step: Step) -> float:
        """Return the guidance scale of a step, with the factors of its stage."""
        return self.cfg.scale * self.stage(step).factor_at(step)

    def most_branches(self, step: Step) -> int:
        """Return the most branches of a view at any step of a step's stage; an interval may leave out some."""
        if not self.stage(step).guidance_interval:
            return len(self.views_branches(step))
        steps = steps_of([self.phase(step)])
        return max(len(self.views_branches(each)) for each in steps if each.stage == step.stage)

    def branches_at(self, step: Step, group: int = 0) -> tuple[Branch, ...]:
        """Return the CFG branches that views are asked with; a guidance may add further ones for the main group."""
        own = self.views_branches(step)
        found = list(own)
        stage = self.stage(step)
        for guidance in () if group else (each for each in stage.guidance if "branches" in points_of(each)):
            asked = self.hooks.asked("guidance", step, guidance)
            found += check_branches(asked, asked.ask(OptionalGuidance.of(guidance).branches, step), own)
        return tuple(found)

    @property
    def canvas(self) -> Canvas:
        """Canvas of the decoded picture."""
        return self.phases[-1].canvas

    @property
    def first(self) -> int:
        """First step that is done; more than 0 if the run starts from a picture."""
        return self.phases[0].first

    def steps(self) -> list[Step]:
        """Return every step of the run, with the stage it belongs to; ``steps()[i].index`` is i."""
        return steps_of(self.phases)

    def patches(self, step: Step) -> list[Patches]:
        """Return the views of every group at a step, in canonical order."""
        groups = 1 + len(self.stage(step).extra_views)
        canvas = self.phase(step).canvas
        return [self.hooks.patch(step, canvas, group).canonical() for group in range(groups)]

    def outlines(self, step: Step) -> list[Outline]:
        """Return number and shape of the views of every group at a step."""
        groups = 1 + len(self.stage(step).extra_views)
        canvas = self.phase(step).canvas
        return [self.hooks.outline(step, canvas, group) for group in range(groups)]

    def forwards_of_groups(self, step: Step) -> list[tuple[int, int]]:
        """Return (latent cells, forwards of one branch) of every view group at a step.

        Without regions these are the views and a clean key view. With regions a view is asked once for every text that
        lies on it, so its place counts, and views are laid out.
        """
        if not self.regions:
            return [(each.cells, each.forwards) for each in self.outlines(step)]
        canvas = self.phase(step).canvas
        return [(each.cells, len(self.regions.asked(canvas, each).pairs)) for each in self.patches(step)]

    def cost(self) -> Cost:
        """Return the network and VAE calls of the run for one picture, the final decoding included.

        The number of views is the same at every step of a stage, so without regions their cost is computed once for
        each number of branches.
        """
        costs = [Cost(decodes=1), Cost(upscalings=len(self.upscalings()))]
        costs += [Cost(decodes=1, encodes=1) for p in self.phases if p.enter is not None and p.enter.resize == "pixels"]
        views: dict[tuple[int, ...], Cost] = {}
        for step in self.steps()[self.first :]:
            place = (step.phase, step.stage, len(self.views_branches(step)), step.index if self.regions else 0)
            views[place] = views.get(place) or self.cost_of_views(step)
            costs += [views[place], self._cost_beside_views(step), *self._cost_of_guidance(step)]
        return Cost.total([*costs, Cost(encodes=self.count_colours() + (self.background_from() is not None))])

    def fills_up(self, step: Step, group: int = 0) -> bool:
        """Whether the views of a group show a noised plain colour beyond the ends of the canvas."""
        stage = self.stage(step)
        patching = stage.patching if group == 0 else stage.extra_views[group - 1].patching
        return self._needs_background(step, "patching", patching)

    def _needs_background(self, step: Step, slot: str, strategy: object) -> bool:
        """Return the checked answer of a patching or a guidance about the canvas of a step."""
        asked = self.hooks.asked(slot, step, strategy)
        own = OptionalPatching.of(strategy) if slot == "patching" else OptionalGuidance.of(strategy)
        return check_flag(asked, "needs_background", asked.ask(own.needs_background, self.phase(step).canvas))

    def background_from(self) -> int | None:
        """Return the first step at which the network sees a noised plain colour beyond the canvas; None if none."""
        for step, _ in self.stage_starts():
            stage = self.stage(step)
            asks = any(self._needs_background(step, "guidance", each) for each in stage.guidance)
            if asks or any(self.fills_up(step, group) for group in range(1 + len(stage.extra_views))):
                return step.index
        return None

    def count_colours(self) -> int:
        """Return the number of plain colours that are encoded for regions at the first step."""
        step = self.steps()[self.first]
        return COLOURS if self.regions.bootstrapped(step, self.phase(step).canvas) else 0

    def upscalings(self) -> list[tuple[Upscaler, tuple[int, int], tuple[int, int]]]:
        """Return every call of an upscaler in order, with the size before and after it, (height, width) in pixels."""
        found = [
            (phase.enter.upscaler, before.picture, phase.picture)
            for before, phase in pairwise(self.phases)
            if phase.enter is not None and phase.enter.upscaler is not None
        ]
        finish = self.composition.finish
        if finish is not None and self.enlarged is not None:
            found.append((finish.upscaler, self.canvas.picture, self.enlarged))
        return found

    def cost_of_step(self, step: Step) -> Cost:
        """Return the network and VAE calls of one step."""
        return Cost.total([self.cost_of_views(step), self._cost_beside_views(step), *self._cost_of_guidance(step)])

    def cost_of_views(self, step: Step) -> Cost:
        """Return the rows of all view groups at a step, without the branches that a guidance adds."""
        branches = len(self.views_branches(step))
        return Cost.total(
            [Cost(rows={cells: forwards * branches}) for cells, forwards in self.forwards_of_groups(step)]
        )

    def _cost_of_guidance(self, step: Step) -> list[Cost]:
        """Return the further branches of the main group and the guidance's own calls."""
        costs, branches = [], len(self.views_branches(step))
        more = len(self.branches_at(step)) - branches
        if more:
            cells, forwards = self.forwards_of_groups(step)[0]
            costs.append(Cost(rows={cells: more * forwards}))
            added = self.branches_at(step)[branches:]
            costs.append(self.cost_beside(step, [(branch, cells, forwards) for branch in added]))
        return [*costs, *self.cost_of_asking(step)]

    def cost_of_asking(self, step: Step) -> list[Cost]:
        """Return the guidance's own calls at a step, besides the rows of views; each asks with all texts."""
        canvas, costs, own = self.phase(step).canvas, [], self.own_branches(step)
        branches = len(own) * self.regions.count_present(canvas)
        for guidance in self.stage(step).guidance:
            costs.append(self.hooks.cost(step, guidance, canvas, branches))
            if has_own(guidance, OptionalGuidance.cost_of_views):  # else it does not depend on them
                costs.append(self.hooks.cost_of_views(step, guidance, self.outlines(step)[0], branches))
        asked = [(b, cells, number // len(own)) for each in costs for cells, number in each.rows.items() for b in own]
        return [*costs, self.cost_beside(step, asked)]

    def cost_beside(self, step: Step, rows: Sequence[tuple[Branch, int, int]]) -> Cost:
        """Return the rows that the stage's rectifications have computed beside others, in the same forwards.

        Args:
            step: Position of the run.
            rows: (CFG branch, latent cells of a view, number of rows).
        """
        native, found = self.phase(step).canvas.native ** 2, Counter[int]()
        for each in self.stage(step).rectification:
            own, asked = OptionalRectification.of(each), self.hooks.asked("rectification", step, each)
            for branch, cells, number in rows if has_own(each, OptionalRectification.further_rows) else ():
                if not own.branches or branch in own.branches:
                    further = asked.ask(own.further_rows, step, branch, cells, native)
                    found[cells] += number * check_count(asked, "further_rows", further)
        return Cost(rows=found)

    def _cost_beside_views(self, step: Step) -> Cost:
        """Return the rows beside those of all view groups at a step, without the branches that a guidance adds."""
        changed = self.stage(step).rectification
        if not any(has_own(each, OptionalRectification.further_rows) for each in changed):
            return Cost()  # without laying out views
        groups, branches = self.forwards_of_groups(step), self.views_branches(step)
        return self.cost_beside(step, [(branch, *each) for each in groups for branch in branches])

    def stage_starts(self) -> list[tuple[Step, int]]:
        """Return the first step of every stage at every size, and how many steps of it are done."""
        ahead = self.steps()[self.first :]
        firsts = [step for step in ahead if step.stage_step == 0 or step.index == self.first]
        return [(step, step.stage_num_steps - step.stage_step) for step in firsts]

    def count_views(self, step: Step) -> int:
        """Return the views of all groups and the clean key views of a step."""
        return sum(outline.forwards for outline in self.outlines(step))

    def count_asked(self, step: Step) -> int:
        """Return the forwards of one branch at a step, of all groups: more than views where regions lie on one."""
        return sum(forwards for _, forwards in self.forwards_of_groups(step))
