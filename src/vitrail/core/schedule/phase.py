"""Phases: one picture size of a run, with its canvas, its scheduler and the stages that run there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from vitrail.core.geometry.views import Canvas
    from vitrail.core.method.cascade import Enter
    from vitrail.core.schedule.noise_schedule import Stepper
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True, eq=False)
class Phase:
    """A pass over a noise schedule at one picture size.

    Attributes:
        number: Index of the phase in the run.
        canvas: The canvas, padding included.
        stepper: The scheduler, set for this phase.
        stages: Numbers of the composition's stages.
        ends: First step after each of them, in this phase's schedule.
        first: First step of the schedule that is done.
        repeats: How often each timestep of each of the stages is done again, except the last of the schedule; () for
            never.
        enter: How the picture so far enters this phase; None for the first phase.
        is_cut: Whether it ends before its schedule does, since the next phase takes over its clean prediction.
        gamma: Factor by which the signal-to-noise ratio, in variances, is less than the network is told; see
            ``rescheduling``.
    """

    number: int
    canvas: Canvas
    stepper: Stepper
    stages: tuple[int, ...] = field(converter=as_tuple)
    ends: tuple[int, ...] = field(converter=as_tuple)
    first: int = 0
    repeats: tuple[int, ...] = field(converter=as_tuple, default=())
    enter: Enter | None = None
    is_cut: bool = False
    gamma: float = 1.0

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels, without padding."""
        return self.canvas.picture


def first_of(strength: float, num_steps: int, order: int) -> int:
    """Return the step of a schedule to begin at, so that a share of its steps is done, rounded half up, at least one.

    Args:
        strength: Share of the inference steps to do, in (0, 1].
        num_steps: Inference steps of the whole schedule.
        order: Scheduler calls per inference step.
    """
    return (num_steps - max(1, math.floor(strength * num_steps + 0.5))) * order


def relayed_first(strength: float, number: int, count: int, num_steps: int, order: int) -> int:
    """Return the step of the schedule at which a further size takes over, so that sizes part a share of its steps.

    MegaFusion (Wu et al., 2024, https://arxiv.org/abs/2408.11001), sec. 4.1 and 5.1: with 0.2 of 50 steps one further
    size has the last 10, two have 5 each. Shares are rounded half up; each size has a step at least.

    Args:
        strength: Share of the inference steps that all further sizes do together.
        number: Number of the further size, from 1.
        count: Number of further sizes.
        num_steps: Inference steps of the whole schedule.
        order: Scheduler calls per inference step.

    Raises:
        ConfigError: If that leaves no step for the first size.
    """
    left = [max(own, math.floor(strength * own / count * num_steps + 0.5)) for own in (count - number + 1, count)]
    if left[1] >= num_steps:
        raise ConfigError(
            f"{count + 1} sizes share {num_steps} steps, and strength {strength:g} leaves none of them for the first; "
            "lower enter.strength, or raise the number of steps"
        )
    return (num_steps - left[0]) * order


def steps_of(phases: Sequence[Phase]) -> list[Step]:
    """Return every step of a run, numbered from 0 on.

    The first phase includes all steps of its schedule, also those that a run from a picture skips; later phases include
    only the steps that are done.
    """
    found: list[Step] = []
    for phase in phases:
        begin = phase.first if phase.number else 0
        ends = [max(end, begin) for end in phase.ends]
        steps = _repeated(phase, phase.stepper.schedule.steps(ends, phase.stages, begin))
        found += [evolve(s, index=len(found) + i, phase=phase.number) for i, s in enumerate(steps)]
    return [evolve(step, num_steps=len(found)) for step in found]


def _repeated(phase: Phase, steps: list[Step]) -> list[Step]:
    """Return the steps of a phase with those that are done again; steps that are skipped are not."""
    if not any(phase.repeats):
        return steps
    times = dict(zip(phase.stages, phase.repeats, strict=True))
    found: list[Step] = []
    for step in steps:
        more = times[step.stage] if phase.first <= step.phase_step < step.phase_num_steps - 1 else 0
        found += [evolve(step, repeat=number, num_repeats=more) for number in range(more + 1)]
    counts, seen = Counter(step.stage for step in found), Counter[int]()
    for number, step in enumerate(found):
        found[number] = evolve(step, stage_step=seen[step.stage], stage_num_steps=counts[step.stage])
        seen[step.stage] += 1
    return found
