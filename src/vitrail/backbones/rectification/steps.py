"""In which steps of a run a rectification acts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.core.step import Step


def within(step: Step, start: float, until: float) -> bool:
    """Whether a step lies in a share of the run's steps; half steps round up, as a stage's ``until`` does."""
    begin, end = (math.floor(share * step.num_steps + 0.5) for share in (start, until))
    return begin <= step.index < end


def after_start(instance: Any, attribute: Any, value: float) -> None:
    """Validator of ``until``: there must be something between it and ``start``."""
    if not instance.start < value <= 1:
        raise ValueError(f"'until' must be more than 'start' ({instance.start:g}) and at most 1, got {value:g}")
