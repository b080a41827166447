"""Which stages need no barrier between steps, and the order of their micro-batches on all ranks.

Where a cell of the canvas depends on the views that write it alone, a view can be predicted once the views that it
overlaps have been predicted a step before. The plan says for every stage whether that is so; a stage that needs more of
the canvas gathers all predictions at every step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.comm.dataflow import StepUnit, dataflow_order
from vitrail.core.config.fields import as_tuple
from vitrail.core.engine.independent_ranks import ranks_are_independent
from vitrail.core.method.members import (
    OptionalFusion,
    OptionalGuidance,
    OptionalMasking,
    OptionalPatching,
    has_own,
)

if TYPE_CHECKING:
    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.geometry.views import Patches, View
    from vitrail.core.schedule.step import Step

Units = tuple[tuple[int, ...], ...]  # numbers of the views of every micro-batch
WATCHED = "a callback reads the canvas"
MOST_VIEWS = 512  # of a step; with more of them ranks wait little at a barrier, and the order would take long to find


def needs_barrier(plan: RunPlan, step: Step) -> str:
    """Return why a step's stage needs the whole canvas at every step; "" if it does not."""
    stage, phase = plan.stage(step), plan.phase(step)
    masking = OptionalMasking.of(stage.masking)
    reasons = {
        "regions share views": bool(plan.regions),
        "its network remembers earlier forwards": plan.remembers,
        "a plugin reads the canvas": plan.hooks.watches_canvas,
        "a plugin watches forwards": plan.hooks.watches_forwards,
        "further groups of views are mixed in": bool(stage.extra_views),
        "guidance acts": not all(OptionalGuidance.of(guidance).is_idle for guidance in stage.guidance),
        "it has a mask": not masking.is_everywhere or stage.masking.request is not None,
        "it remembers attention maps": stage.remember,
        "its fusion is not cellwise": not OptionalFusion.of(stage.fusion).is_cellwise,
        "its views are read from a changed canvas": has_own(stage.patching, OptionalPatching.prepare),
        "views show a background": plan.fills_up(step),
        "timesteps are done again": bool(stage.repeats),
        "views are scaled by their number": stage.scale_batch is not None,
        "its scheduler thresholds": not phase.stepper.works_by_cell,
    }
    found = next((reason for reason, holds in reasons.items() if holds), "")
    return found or _views_reason(plan, step)


def goes_apart(plan: RunPlan, step: Step, flows: bool) -> bool:
    """Whether each rank advances views of its own in a step's stage, unobserved and without collectives.

    Args:
        plan: What the run does.
        step: Position of the run.
        flows: Whether ranks exchange as a dataflow where they can, which shares windows side by side more evenly.
    """
    if not ranks_are_independent(plan, step):
        return False
    return not flows or _are_strided(plan.patches(step)[0].views) or bool(needs_barrier(plan, step))


def exchange_text(plan: RunPlan, step: Step, watched: bool = False) -> str:
    """Return how ranks that shall exchange as a dataflow exchange the views of a step's stage.

    Args:
        plan: What the run does.
        step: Position of the run.
        watched: Whether an observer reads the canvas after every step.
    """
    if not watched and goes_apart(plan, step, flows=True):
        return "each rank advances views of its own, and the canvas is gathered at its end"
    reason = WATCHED if watched else needs_barrier(plan, step)
    if reason:
        return f"ranks wait for all views at every step, since {reason}"
    return "no barrier between steps: ranks wait for the views that theirs overlap"


def _are_strided(views: Sequence[View]) -> bool:
    """Whether views lie between each other and not side by side, so that each overlaps all in a dataflow."""
    return any(max(view.vertical.step, view.horizontal.step) > 1 for view in views)


def _views_reason(plan: RunPlan, step: Step) -> str:
    """Return what keeps the views of a stage from being predicted one by one; "" if nothing does."""
    count = plan.outlines(step)[0].count
    if count == 1:
        return "one view shows all of it"
    if count > MOST_VIEWS:
        return f"it has more than {MOST_VIEWS} views"
    steps = [each for each in plan.steps() if (each.phase, each.stage) == (step.phase, step.stage)]
    every = [plan.patches(each)[0] for each in steps]
    if any(patches.permutation is not None or patches.clean_key for patches in every):
        return "its views swap values, or the key view is asked twice"
    return ""


@frozen(eq=False)
class DataflowPlan:
    """The micro-batches of some steps of one stage, and the order in which ranks do them.

    Attributes:
        steps: The steps.
        patches: The views of each.
        rows: Number of rows of every micro-batch of each.
        units: Numbers of the views of every micro-batch of each.
        needs: Of every micro-batch of each step, the micro-batches of the step before that it needs.
        order: All micro-batches, with steps counted from 0.
    """

    steps: tuple[Step, ...] = field(converter=as_tuple)
    patches: tuple[Patches, ...] = field(converter=as_tuple)
    rows: tuple[Sequence[int], ...] = field(converter=as_tuple)
    units: tuple[Units, ...] = field(converter=as_tuple)
    needs: tuple[Units, ...] = field(converter=as_tuple)
    order: tuple[StepUnit, ...] = field(converter=as_tuple)

    @classmethod
    def of(cls, plan: RunPlan, steps: Sequence[Step], row_batch: int, speeds: Sequence[float]) -> DataflowPlan:
        """Return the plan of some steps of a stage that ``needs_barrier`` lets go without one.

        Args:
            plan: What the run does.
            steps: The steps, one after the other.
            row_batch: Largest number of rows of a micro-batch.
            speeds: Relative speeds of the ranks.
        """
        patches = [plan.patches(step)[0] for step in steps]
        branches = [len(plan.branches_at(step)) for step in steps]
        units = [units_of(len(p.views), b, row_batch) for p, b in zip(patches, branches, strict=True)]
        totals = [len(p.views) * b for p, b in zip(patches, branches, strict=True)]
        rows = [[min(row_batch, n - begin) for begin in range(0, n, row_batch)] for n in totals]
        needs: list[Units] = [tuple(() for _ in units[0])]
        for number in range(1, len(steps)):
            touching = overlaps(patches[number].views, patches[number - 1].views)
            needs.append(needs_of(units[number], units[number - 1], touching))
        order = dataflow_order([[float(count) for count in own] for own in rows], needs, speeds)
        return cls(steps, patches, rows, units, needs, order)


def units_of(views: int, branches: int, row_batch: int) -> Units:
    """Return the numbers of the views of every micro-batch, rows view by view, branches side by side.

    Args:
        views: Number of views.
        branches: Rows of a view.
        row_batch: Largest number of rows of a micro-batch.
    """
    total = views * branches
    cuts = [range(begin, min(begin + row_batch, total)) for begin in range(0, total, row_batch)]
    return tuple(tuple(sorted({row // branches for row in rows})) for rows in cuts)


def needs_of(units: Units, before: Units, touching: Sequence[Sequence[int]]) -> Units:
    """Return the micro-batches of the step before that every micro-batch needs.

    Args:
        units: Micro-batches of a step.
        before: Micro-batches of the step before.
        touching: By view of the step, the views of the step before that write what it reads.
    """
    asked: dict[int, list[int]] = {}
    for number, views in enumerate(before):
        for view in views:
            asked.setdefault(view, []).append(number)
    return tuple(
        tuple(sorted({unit for view in views for other in touching[view] for unit in asked[other]})) for views in units
    )


@functools.lru_cache(maxsize=8)
def overlaps(reading: tuple[View, ...], writing: tuple[View, ...]) -> tuple[tuple[int, ...], ...]:
    """Return for every view the views of another step that write cells which it reads.

    Strided views are taken for as large as the rectangle around them.

    Args:
        reading: Views of a step.
        writing: Views of the step before.
    """
    import torch

    def boxes(views: Sequence[View], written: bool) -> tuple[torch.Tensor, torch.Tensor]:
        pieces = [(n, p) for n, view in enumerate(views) for p in (view.written if written else view.pieces)]
        found = [[p.rows.start, p.rows.stop, p.cols.start, p.cols.stop] for _, p in pieces]
        numbers = torch.tensor([n for n, _ in pieces], dtype=torch.int64, device="cpu")
        return numbers, torch.tensor(found, dtype=torch.int64, device="cpu")

    (readers, read), (writers, written) = boxes(reading, written=False), boxes(writing, written=True)
    begin = torch.maximum(read[:, None, ::2], written[None, :, ::2])
    end = torch.minimum(read[:, None, 1::2], written[None, :, 1::2])
    pairs = (begin < end).all(-1).nonzero()
    found: list[set[int]] = [set() for _ in reading]
    for own, other in zip(readers[pairs[:, 0]].tolist(), writers[pairs[:, 1]].tolist(), strict=True):
        found[own].add(other)
    return tuple(tuple(sorted(each)) for each in found)
