"""In which steps of a schedule, and on which CFG branches, a rectification acts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

from attrs import validators as v

from vitrail.core.method.micro_batch import Branch

if TYPE_CHECKING:
    from vitrail.core.schedule.step import Step

known_branches = v.deep_iterable(v.in_(get_args(Branch)))  # validator of ``branches``


def steps_between(step: Step, start: float, until: float) -> range:
    """The steps of a schedule that lie in a share of it; half steps round up, as a stage's ``until`` does."""
    begin, end = (math.floor(share * step.phase_num_steps + 0.5) for share in (start, until))
    return range(begin, end)


def within(step: Step, start: float, until: float) -> bool:
    """Whether a step lies in a share of its schedule's steps."""
    return step.phase_step in steps_between(step, start, until)


def after_start(instance: Any, attribute: Any, value: float) -> None:
    """Validator of ``until``: there must be something between it and ``start``."""
    if not instance.start < value <= 1:
        raise ValueError(f"'until' must be more than 'start' ({instance.start:g}) and at most 1, got {value:g}")
