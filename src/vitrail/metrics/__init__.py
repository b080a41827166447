"""Metrics of finished pictures, their feature extractors and reference sets. Imports neither torch nor PIL."""

from __future__ import annotations

from vitrail.core.config.registry import Registry
from vitrail.core.method.hookspecs import hookimpl
from vitrail.metrics.clip import Clip
from vitrail.metrics.clip_score import ClipScore
from vitrail.metrics.colour_shift import ColourShift
from vitrail.metrics.fid import Fid
from vitrail.metrics.inception import Inception
from vitrail.metrics.inception_score import InceptionScore
from vitrail.metrics.judge_features import DemoJudge
from vitrail.metrics.kid import Kid
from vitrail.metrics.objects import Objects
from vitrail.metrics.picture_folder import PictureFolder
from vitrail.metrics.renders import DemoRenders
from vitrail.metrics.repetition import Repetition
from vitrail.metrics.seams import Seams
from vitrail.metrics.sharpness import Sharpness
from vitrail.metrics.specks import Specks
from vitrail.metrics.wholeness import Wholeness


@hookimpl
def vitrail_register(registry: Registry) -> None:
    """Register the built-in metrics, feature extractors and reference sets."""
    registry.add("metrics", "objects", Objects)
    registry.add("metrics", "specks", Specks)
    registry.add("metrics", "wholeness", Wholeness)
    registry.add("metrics", "sharpness", Sharpness)
    registry.add("metrics", "colour-shift", ColourShift)
    registry.add("metrics", "seams", Seams)
    registry.add("metrics", "repetition", Repetition)
    registry.add("metrics", "fid", Fid)
    registry.add("metrics", "kid", Kid)
    registry.add("metrics", "inception-score", InceptionScore)
    registry.add("metrics", "clip-score", ClipScore)
    registry.add("features", "demo-judge", DemoJudge)
    registry.add("features", "inception", Inception)
    registry.add("features", "clip", Clip)
    registry.add("references", "demo-renders", DemoRenders)
    registry.add("references", "folder", PictureFolder)
