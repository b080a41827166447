"""Contract checks for plugin authors: call the check of your slot with your class, in a test.

    from vitrail.testing import check_guidance

    def test_mine():
        check_guidance(MyGuidance)

A check raises AssertionError naming the broken rule. A class is built with its defaults; pass an instance for other
options.
"""

from vitrail.testing.backbone_contract import check_backbone
from vitrail.testing.contract import check_repeats
from vitrail.testing.fusion_contract import check_fusion
from vitrail.testing.guidance_contract import check_guidance
from vitrail.testing.masking_contract import check_masking
from vitrail.testing.metric_contract import check_features, check_metric, check_references, make_shown
from vitrail.testing.patching_contract import WRAPS, check_cover, check_patching
from vitrail.testing.prompting_contract import check_prompting
from vitrail.testing.rectification_contract import check_rectification
from vitrail.testing.steps_to_visit import CHANNELS, ENDS, PREDICTION_TYPES, make_prediction, make_step, make_steps
from vitrail.testing.traces import Traces
from vitrail.testing.upscaler_contract import check_upscaler

__all__ = [
    "CHANNELS",
    "ENDS",
    "PREDICTION_TYPES",
    "WRAPS",
    "Traces",
    "check_backbone",
    "check_cover",
    "check_features",
    "check_fusion",
    "check_guidance",
    "check_masking",
    "check_metric",
    "check_patching",
    "check_prompting",
    "check_rectification",
    "check_references",
    "check_repeats",
    "check_upscaler",
    "make_prediction",
    "make_shown",
    "make_step",
    "make_steps",
]
