"""Contract checks of metrics, feature extractors and reference sets."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vitrail.core.method.calls import StrategyCall
from vitrail.core.method.members import OptionalFeatureExtractor
from vitrail.core.method.metric import Shown
from vitrail.core.method.returned_measures import (
    Vectors,
    columns_of,
    digest_of_set,
    look_at,
    numbers_of,
    pictures_of,
    vectors_of,
)
from vitrail.core.schedule.streams import Streams
from vitrail.errors import ConfigError
from vitrail.testing.contract import DTYPES, dtype_message, instance_of, same, surroundings

SIZES = ((128, 128), (131, 150), (160, 143))
NATIVE = 64  # training size in pixels, so that there are several tiles and borders


def make_shown(count: int = 3) -> list[Shown]:
    """Make up to three smooth random pictures of different sizes, with borders of views."""
    found = []
    for number, (height, width) in enumerate(SIZES[:count]):
        coarse = Streams(number).uniform((1, 3, 6, 6), "picture")
        picture = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
        found.append(Shown(picture=picture, prompt="a fox", native_size=NATIVE, rows=(NATIVE,), columns=(NATIVE,)))
    return found


def check_metric(metric: Any, pictures: Sequence[Shown] | None = None) -> None:
    """Check that a metric gives a reproducible number within its range for each column.

    The numbers must not depend on the order of the pictures, the global random state or the default dtype.

    Args:
        metric: A class, built with its defaults, or an instance.
        pictures: Three pictures or more; those of ``make_shown`` if None.

    Raises:
        AssertionError: Naming the broken rule.
        ShapeError: For a returned value that a report refuses.
    """
    chosen = instance_of("metrics", metric)
    shown = list(make_shown() if pictures is None else pictures)
    asked = StrategyCall("metrics", chosen)
    columns = columns_of(asked, chosen)
    features = _checked_features(chosen, shown)
    reference = features[:2] if chosen.needs_reference else None
    found = numbers_of(asked, chosen, features, reference)
    for column, value in zip(columns, found, strict=True):
        assert not math.isnan(value), f"{column.name} is nan for {len(shown)} pictures"
    assert chosen.gather(features, reference) == found, "the same pictures must give the same numbers"
    for dtype in DTYPES:
        with surroundings(0, dtype):
            assert chosen.gather(features, reference) == found, dtype_message("what it makes of the pictures", dtype)
    turned = chosen.gather(features.roll(1, 0), reference)
    alike = all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in zip(found, turned, strict=True))
    assert alike, "the order of the pictures must not count"
    if chosen.needs_reference:
        refused = ""
        try:
            chosen.gather(features, None)
        except ConfigError as error:
            refused = str(error)
        assert "reference" in refused, "without a reference set a metric that compares must refuse, and say so"


def _checked_features(metric: Any, shown: Sequence[Shown]) -> Tensor:
    """Extract the features of all pictures, and check that random state, dtype and copies do not change them."""
    features = _features(metric, shown)
    assert torch.equal(features, _features(metric, shown)), "the extractor must see the same again"
    with surroundings(1, torch.float32):
        other = _features(copy.deepcopy(metric), shown)
    assert torch.equal(features, other), "the extractor must see the same under another global random state"
    for dtype in DTYPES:
        with surroundings(0, dtype):
            other = _features(copy.deepcopy(metric), shown)
        same(features, other, dtype_message("what its extractor sees", dtype))
    assert repr(copy.deepcopy(metric.extractor)) == repr(metric.extractor), (
        "equal extractors have one repr, under which answers are kept"
    )
    return features


def check_features(features: Any, pictures: Tensor | None = None) -> None:
    """Check that features are float32 vectors without gradient, independent of batch and default dtype.

    Class probabilities must sum to one.

    Args:
        features: A class, built with its defaults, or an instance.
        pictures: Two different pictures in [0, 1], Float32[Tensor, "2 3 Height Width"]; smooth random ones if None.

    Raises:
        AssertionError: Naming the broken rule.
        ShapeError: For a returned value that a report refuses.
    """
    chosen = instance_of("features", features)
    if pictures is None:
        coarse = Streams(0).uniform((2, 3, 6, 6), "pictures")
        pictures = torch.nn.functional.interpolate(coarse, SIZES[1], mode="bicubic").clamp(0, 1)
    members: tuple[tuple[Vectors, Any], ...] = (("extract", chosen.extract), ("probabilities", chosen.probabilities))
    for member, look in members:
        found = vectors_of(StrategyCall("features", chosen), chosen, member, pictures)
        torch.testing.assert_close(found[1:], look(pictures[1:]), rtol=1e-4, atol=1e-5)
        for dtype in DTYPES:
            with surroundings(0, dtype):
                same(found, look(pictures), dtype_message(member, dtype))
        assert not torch.allclose(found[0], found[1], rtol=1e-4), f"{member}: unlike pictures look alike"
    digests = [OptionalFeatureExtractor.of(each).digest for each in (chosen, copy.deepcopy(chosen))]
    assert digests[0] == digests[1], "the same files must have the same digest"


def check_references(references: Any) -> None:
    """Check that a reference set yields reproducible pictures in [0, 1] of the requested size, and has a digest.

    Args:
        references: A class, built with its defaults, or an instance.

    Raises:
        AssertionError: Naming the broken rule.
        ShapeError: For a returned value that a report refuses.
    """
    chosen = instance_of("references", references)
    asked = StrategyCall("references", chosen)
    digest_of_set(asked, chosen)
    assert chosen.digest == copy.deepcopy(chosen).digest, "the same set must have the same digest"
    for height, width in ((64, 64), (65, 97)):
        first = [each.picture for each in islice(pictures_of(asked, chosen, height, width), 3)]
        with surroundings(1, torch.float32):
            again = [each.picture for each in islice(chosen.pictures(height, width), 3)]
        assert len(first) == len(again) and all(map(torch.equal, first, again)), "a set is always the same pictures"
        assert len(first) < 2 or not torch.equal(first[0], first[1]), "its pictures must not be one"


def _features(metric: Any, shown: Sequence[Shown]) -> Tensor:
    answers = [look_at(StrategyCall("metrics", metric), metric, each) for each in shown]
    assert len({answer.shape for answer in answers}) == 1, (
        "an extractor's answers have one shape for pictures of any size"
    )
    return torch.stack(answers)
