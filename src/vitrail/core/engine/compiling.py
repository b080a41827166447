"""Runs whose network is compiled: methods that cannot be, and the number of graphs.

A graph is made for every number of rows and shape of a view. Micro-batches with a row whose attention is captured run
uncompiled.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.core.engine.micro_batches import cuts_of
from vitrail.errors import CapabilityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vitrail.core.engine.plan import RunPlan
    from vitrail.core.method.backbone import Backbone
    from vitrail.core.method.composition import Composition
    from vitrail.core.schedule.step import Step

LEAVE_OUT = "leave compile out (--no-compile, compile = false)"
MOST_GRAPHS = 64  # of a run; each takes seconds to minutes to make
Shape = tuple[int, int, int]  # rows, and height and width in latent cells


@frozen
class Graphs:
    """The graphs that a compiled run makes.

    Attributes:
        shapes: Rows, height and width of the forwards of views, in latent cells.
        beside: Largest number of further ones, of what guidance asks besides the views.
        captures: Whether some forwards run uncompiled, since attention is captured.
    """

    shapes: tuple[Shape, ...]
    beside: int
    captures: bool


def check_compiling(composition: Composition, backbone: Backbone, model: str) -> None:
    """Refuse to compile where the network's forward is not one and the same computation.

    Args:
        composition: The method.
        backbone: The model.
        model: Its name, for messages.

    Raises:
        CapabilityError: Listing every reason.
    """
    _refuse([*_of_model(backbone, model), *_of_method(composition)])


def check_method(composition: Composition) -> None:
    """Refuse a method that cannot be compiled on any model; raises as ``check_compiling`` does."""
    _refuse(_of_method(composition))


def _refuse(reasons: Iterable[str]) -> None:
    """Raise one error with all reasons; return if there are none."""
    listed = "\n  ".join(reasons)
    if listed:
        raise CapabilityError(f"the network cannot be compiled:\n  {listed}\nso {LEAVE_OUT}")


def _of_method(composition: Composition) -> Iterator[str]:
    """Yield what keeps a method from being compiled, by what its strategies declare."""
    for place in composition.places():
        name = f"{place.path}: {type(place.strategy).__name__}"
        if place.slot == "rectification":
            yield f"{name} changes the network for some forwards, which compiled code does not see"
        if "gradients" in place.strategy.needs:
            yield f"{name} differentiates through the network, which is compiled for forwards alone"


def _of_model(backbone: Backbone, model: str) -> Iterator[str]:
    """Yield what keeps a model, as it is now, from being compiled."""
    if "compile" not in backbone.offers:
        yield f"model {model!r} does not offer 'compile'"
    found = backbone.remembers()
    if found is not None:
        yield (
            f"the network remembers earlier forwards ({found.where}), so they are not one computation; "
            "switch the cache off"
        )


def check_graphs(plan: RunPlan, row_batch: int) -> Graphs:
    """Return the graphs that a run will make.

    Args:
        plan: What the run will do.
        row_batch: Largest number of rows per forward.

    Raises:
        CapabilityError: If there are more than ``MOST_GRAPHS``.
    """
    found = graphs_of(plan, row_batch)
    if len(found.shapes) > MOST_GRAPHS:
        raise CapabilityError(
            f"compile would make {len(found.shapes)} graphs of the network, {MOST_GRAPHS} at most are made, since each "
            f"takes long; choose a method with views of one shape or another row_batch (--row-batch), or {LEAVE_OUT}"
        )
    return found


def graphs_of(plan: RunPlan, row_batch: int) -> Graphs:
    """Count the graphs of a run.

    Args:
        plan: What the run will do.
        row_batch: Largest number of rows per forward.
    """
    shapes: set[Shape] = set()
    beside: dict[int, int] = {}  # most rows at a step, by the cells of a view
    captures = False
    for step in plan.steps()[plan.first :]:
        is_captured = _captures(plan, step)
        captures |= is_captured
        for group in range(1 + len(plan.stage(step).extra_views)):
            shapes |= _of_views(plan, step, group, row_batch, is_captured and group == 0)
        for cells, rows in (pair for cost in plan.cost_of_asking(step) for pair in cost.rows.items()):
            beside[cells] = max(beside.get(cells, 0), rows)
    most = sum(min(row_batch, rows) for rows in beside.values())
    return Graphs(tuple(sorted(shapes)), most, captures)


def _captures(plan: RunPlan, step: Step) -> bool:
    """Whether the key view's attention is captured at a step."""
    stage = plan.stage(step)
    return stage.masking.request is not None or stage.remember


def _of_views(plan: RunPlan, step: Step, group: int, row_batch: int, is_captured: bool) -> set[Shape]:
    """Return the shapes of the compiled forwards of a group's views at a step.

    Views are laid out only where it matters which one is captured, or which regions lie on them.
    """
    branches, outline = plan.branches_at(step, group), plan.outlines(step)[group]
    cond = branches.index("cond") if "cond" in branches else 0
    entries, rows = list(range(outline.forwards)), list[int]()
    if is_captured or plan.regions:
        patches = plan.patches(step)[group]
        entries = [entry for entry, _ in plan.regions.asked(plan.phase(step).canvas, patches).pairs]
        key = patches.key_entry if is_captured else None
        rows = [number * len(branches) + cond for number, entry in enumerate(entries) if entry == key]
    cuts = cuts_of(len(entries) * len(branches), row_batch, rows)
    plain = [end - begin for begin, end in pairwise(cuts) if not any(begin <= row < end for row in rows)]
    return {(count, *outline.shape) for count in plain}
