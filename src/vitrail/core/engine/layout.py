"""What a run will do, step by step, and what it will cost; known before any model call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.calls import Asked
from vitrail.core.method.cost import Cost
from vitrail.core.method.members import OptionalGuidance, has_own
from vitrail.core.method.returned_values import check_branches
from vitrail.core.schedule.phase import steps_of

if TYPE_CHECKING:
    from vitrail.core.engine.hooks import Stages
    from vitrail.core.geometry.views import Canvas, Outline, Patches
    from vitrail.core.method.composition import Composition, Stage
    from vitrail.core.method.protocols import Branch
    from vitrail.core.schedule.phase import Phase
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True, eq=False)
class Layout:
    """A run as laid out.

    Attributes:
        composition: Stages with strategies.
        stages: The run's hooks.
        phases: The sizes of the run, each with a canvas and a scheduler; the last is the wanted one.
        branches: ``("uncond", "cond")``, or only ``("cond",)`` with classifier-free guidance off.
    """

    composition: Composition
    stages: Stages
    phases: tuple[Phase, ...] = field(converter=as_tuple)
    branches: tuple[Branch, ...] = field(converter=as_tuple)

    @property
    def canvas(self) -> Canvas:
        """Of the wanted picture."""
        return self.phases[-1].canvas

    @property
    def first(self) -> int:
        """The step to begin at; more than 0 if the run starts from a picture."""
        return self.phases[0].first

    def steps(self) -> list[Step]:
        """Every step of the run, with the stage it belongs to; ``steps()[i].index`` is i."""
        return steps_of(self.phases)

    def patches(self, step: Step) -> list[Patches]:
        """The views of every family at a step, in canonical order."""
        families = 1 + len(self.composition.stages[step.stage].also)
        canvas = self.phases[step.phase].canvas
        return [self.stages.patch(step, canvas, family).canonical() for family in range(families)]

    def outlines(self, step: Step) -> list[Outline]:
        """What the views of every family are like at a step."""
        families = 1 + len(self.composition.stages[step.stage].also)
        canvas = self.phases[step.phase].canvas
        return [self.stages.outline(step, canvas, family) for family in range(families)]

    def cost(self) -> Cost:
        """What the run will ask of its networks for one picture, decoding it at the end included.

        A patching has as many views at every step of a stage, so the first step of each tells.
        """
        costs = [Cost(decodes=1)]
        costs += [Cost(decodes=1, encodes=1) for p in self.phases if p.enter is not None and p.enter.resize == "pixels"]
        views: dict[tuple[int, int], Cost] = {}
        for step in self.steps()[self.first :]:
            place = (step.phase, step.stage)
            views[place] = views.get(place) or self.cost_of_views(step)
            costs += [views[place], *self._cost_of_guidance(step)]
        return Cost.total(costs)

    def cost_of_step(self, step: Step) -> Cost:
        """What one step asks of the networks."""
        return Cost.total([self.cost_of_views(step), *self._cost_of_guidance(step)])

    def cost_of_views(self, step: Step) -> Cost:
        """Rows of all families at a step, with the run's own branches."""
        branches = len(self.branches)
        return Cost.total([Cost(rows={each.cells: each.forwards * branches}) for each in self.outlines(step)])

    def _cost_of_guidance(self, step: Step) -> list[Cost]:
        """What guidance asks for besides: branches of the main family, and what it does on its own."""
        costs, branches = [], len(self.branches)
        more = len(branches_of(self.composition.stages[step.stage], step, self.branches)) - branches
        if more:
            main = self.outlines(step)[0]
            costs.append(Cost(rows={main.cells: more * main.forwards}))
        return [*costs, *self.cost_of_asking(step)]

    def cost_of_asking(self, step: Step) -> list[Cost]:
        """What guidance does on its own at a step, besides the rows of views."""
        costs, branches = [], len(self.branches)
        for guidance in self.composition.stages[step.stage].guidance:
            costs.append(self.stages.cost(step, guidance, self.phases[step.phase].canvas, branches))
            if has_own(guidance, OptionalGuidance.cost_of_views):  # others do not ask about the views
                costs.append(self.stages.cost_of_views(step, guidance, self.outlines(step)[0], branches))
        return costs

    def stage_starts(self) -> list[tuple[Step, int]]:
        """The first step that is done of every stage at every size, and how many are."""
        ahead = self.steps()[self.first :]
        firsts = [step for step in ahead if step.stage_step == 0 or step.index == self.first]
        return [(step, step.stage_num_steps - step.stage_step) for step in firsts]

    def count_views(self, step: Step) -> int:
        """Forwards of one branch at a step: the views of all families and clean key views."""
        return sum(outline.forwards for outline in self.outlines(step))


def branches_of(stage: Stage, step: Step, branches: Sequence[Branch], family: int = 0) -> tuple[Branch, ...]:
    """The CFG branches of a step; a guidance may want further ones for the main family.

    Args:
        stage: Its strategies.
        step: Where the run stands.
        branches: Of the run.
        family: 0 is the main one.
    """
    found = list(branches)
    for guidance in () if family else (guidance for guidance in stage.guidance if guidance.point == "branches"):
        wanted = OptionalGuidance.of(guidance).branches(step)
        found += check_branches(Asked("guidance", guidance, step), wanted, branches)
    return tuple(found)
