"""Cases of a law of which some run by default and all in the profiles ``ci`` and ``long``."""

import os
from collections.abc import Callable, Iterable

import pytest

PROFILE = os.environ.get("VITRAIL_PROFILE", "fast")
THOROUGH = PROFILE != "fast"


def often(cases: Iterable[object], is_often: Callable[[object], bool]) -> list[object]:
    """Return cases as parameters, marked ``thorough`` but for those that run by default."""
    chosen = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        chosen.append(pytest.param(*values, marks=[] if is_often(case) else pytest.mark.thorough))
    return chosen


def every(number: int, cases: Iterable[object]) -> list[object]:
    """Return cases as parameters, of which every so many runs by default, the first one among them."""
    numbered = list(cases)
    chosen = numbered[::number]
    return often(numbered, lambda case: any(case is each for each in chosen))
