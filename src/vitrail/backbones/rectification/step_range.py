"""Range of steps, and CFG branches, in which a rectification acts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

from attrs import validators as v

from vitrail.core.method.micro_batch import Branch

if TYPE_CHECKING:
    from vitrail.core.schedule.step import Step

known_branches = v.deep_iterable(v.in_(get_args(Branch)))  # validator of ``branches``


def steps_between(step: Step, start: float, until: float) -> range:
    """Return the steps in a range of shares of a phase's schedule, rounded half up, as a stage's ``until``.

    Args:
        step: A step of the phase.
        start: Share of the steps before the range.
        until: Share of the steps at its end.
    """
    begin, end = (math.floor(share * step.phase_num_steps + 0.5) for share in (start, until))
    return range(begin, end)


def within(step: Step, start: float, until: float) -> bool:
    """Whether a step lies in a range of shares of its schedule's steps.

    Args:
        step: The step.
        start: Share of the steps before the range.
        until: Share of the steps at its end.
    """
    return step.phase_step in steps_between(step, start, until)


def after_start(instance: Any, attribute: Any, value: float) -> None:
    """Validate ``until``: it must be greater than ``start`` and at most 1.

    Raises:
        ValueError: If it is not.
    """
    if not instance.start < value <= 1:
        raise ValueError(f"'until' must be more than 'start' ({instance.start:g}) and at most 1, got {value:g}")
