"""Contract checks for plugin authors: call the one of your slot with your class, in a test.

    from vitrail.testing import check_guidance

    def test_mine():
        check_guidance(MyGuidance)

A check raises AssertionError with what was expected. Classes are built with their defaults unless an
instance is given.
"""

from vitrail.testing.steps import (
    CHANNELS,
    ENDS,
    PREDICTION_TYPES,
    make_prediction,
    make_step,
    make_steps,
)
from vitrail.testing.strategies import (
    WRAPS,
    check_cover,
    check_fusion,
    check_guidance,
    check_masking,
    check_patching,
    check_prompting,
)

__all__ = [
    "CHANNELS",
    "ENDS",
    "PREDICTION_TYPES",
    "WRAPS",
    "check_cover",
    "check_fusion",
    "check_guidance",
    "check_masking",
    "check_patching",
    "check_prompting",
    "make_prediction",
    "make_step",
    "make_steps",
]
