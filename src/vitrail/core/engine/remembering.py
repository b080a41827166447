"""Networks that cache earlier forwards, and the runs that can use them.

A cache inside a network returns what was computed at an earlier step for the same row. So every row must be computed at
each step and find its own entry, of the same view and branch, not the most recent one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.geometry.views import Patches
    from vitrail.core.method.backbone import ForwardCaching
    from vitrail.core.schedule.step import Step


def check_remembering(found: ForwardCaching, plan: RunPlan, row_batch: int, world_size: int) -> None:
    """Refuse a run whose forwards would read cached values of other rows.

    Args:
        found: The cache in the network.
        plan: What the run will do.
        row_batch: Largest number of rows per forward.
        world_size: Number of ranks.

    Raises:
        CapabilityError: Naming the cache, why it does not fit, and what to do.
    """
    why = next(_misfits(found, plan, row_batch, world_size), None)
    if why is not None:
        raise CapabilityError(f"the network remembers earlier forwards ({found.where}), but {why}; {found.remedy}")


def _misfits(found: ForwardCaching, plan: RunPlan, row_batch: int, world_size: int) -> Iterator[str]:
    composition = plan.composition
    if composition.attention_request() is not None:
        yield "the method looks at attention maps, which layers that are left out do not give"
    if "gradients" in composition.needs:
        yield "the method differentiates, which asks for forwards besides those of the steps"
    if any(stage.rectification for stage in composition.stages):
        yield "the method changes the network for a range of steps, and what was kept would outlive the change"
    if any(step.repeat for step in plan.steps()):
        yield "the method does timesteps again, whose forwards would be taken for those of the first time"
    if plan.regions:
        yield "regions ask for a view more than once, which would share a place"
    if found.by_name:
        yield from _by_name(plan)
    else:
        yield from _as_one(plan, row_batch, world_size)


def _by_name(plan: RunPlan) -> Iterator[str]:
    """Yield why a cache with an entry per view and branch does not fit."""
    seen: dict[tuple[int, int], object] = {}
    for step in plan.steps()[plan.first :]:
        every = plan.patches(step)
        yield from _questions(plan, step, every)
        views = [view for patches in every for view in patches.views]
        if len(set(views)) < len(views):
            yield "two view groups have the same view, which would share a place"
        now = ([(view, view.roll) for view in views], plan.branches_at(step))
        if seen.setdefault((step.phase, step.stage), now) != now:
            yield "the method's views, or the branches of guidance, are others at every step: use one whose views stay"


def _as_one(plan: RunPlan, row_batch: int, world_size: int) -> Iterator[str]:
    """Yield why a cache with one entry, for a single forward per step with the same rows, does not fit."""
    kept = "it keeps them in one place for all, which serves a single view and rank, as with method 'direct'"
    first: object = None
    for step in plan.steps()[plan.first :]:
        every = plan.patches(step)
        yield from _questions(plan, step, every)
        branches = plan.branches_at(step)
        if world_size > 1 or sum(len(patches.views) for patches in every) > 1:
            yield kept
        if len(branches) > row_batch:
            yield f"{kept}, and its {len(branches)} branches in one forward: raise row_batch to {len(branches)}"
        now = (step.phase, every[0].views[0], every[0].views[0].roll, branches)
        first = first or now
        if now != first:
            yield f"{kept}, and this method's view changes on the way"


def _questions(plan: RunPlan, step: Step, every: list[Patches]) -> Iterator[str]:
    """Yield why forwards besides those of unpermuted views do not fit."""
    if any(cost.rows for cost in plan.cost_of_asking(step)):
        yield "the method's guidance asks the network besides the views of a step"
    if any(patches.permutation is not None or patches.clean_key for patches in every):
        yield "the method exchanges the pixels of its views, so that none has what it had a step before"
