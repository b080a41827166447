"""One size of a run: a canvas, a scheduler of its own and the stages that are done there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.cascade import Enter
    from vitrail.core.schedule.noise_schedule import Stepper
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True, eq=False)
class Phase:
    """A pass over a noise schedule at one size.

    Attributes:
        number: Among the run's phases.
        canvas: With its padding.
        stepper: The scheduler, set for this phase.
        stages: Numbers of the composition's stages.
        ends: First step after each of them, in this phase's schedule.
        first: Step of the schedule to begin at.
        enter: How it begins; None for the first.
    """

    number: int
    canvas: Canvas
    stepper: Stepper
    stages: tuple[int, ...] = field(converter=as_tuple)
    ends: tuple[int, ...] = field(converter=as_tuple)
    first: int = 0
    enter: Enter | None = None

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels, without padding."""
        return self.canvas.picture


def first_of(strength: float, num_steps: int, order: int) -> int:
    """The step of a schedule to begin at, so that a share of its steps is done; at least one is, half steps round up.

    Args:
        strength: The share.
        num_steps: Inference steps of the whole schedule.
        order: Calls of the scheduler for each.
    """
    return (num_steps - max(1, math.floor(strength * num_steps + 0.5))) * order


def steps_of(phases: Sequence[Phase]) -> list[Step]:
    """Every step of a run, numbered from 0 on.

    The first phase has all steps of its schedule, also those that a run from a picture leaves out; later ones have
    those that are done.
    """
    found: list[Step] = []
    for phase in phases:
        begin = phase.first if phase.number else 0
        ends = [max(end, begin) for end in phase.ends]
        steps = phase.stepper.schedule.steps(ends, phase.stages, begin)
        found += [evolve(s, index=len(found) + i, phase=phase.number) for i, s in enumerate(steps)]
    return [evolve(step, num_steps=len(found)) for step in found]
