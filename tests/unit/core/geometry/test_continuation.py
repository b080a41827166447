"""A picture that is continued across its ends and resized has no seam, and the size that was wanted."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vitrail.core.geometry.continuation import Continuation
from vitrail.core.schedule.streams import Streams
from vitrail.testing import WRAPS

SIDES, REACHES = st.integers(1, 12), st.integers(0, 30)


@given(size=st.tuples(SIDES, SIDES), wanted=st.tuples(SIDES, SIDES), wrap=st.sampled_from(WRAPS), reach=REACHES)
def test_both_sizes_are_whole_pixels_and_the_margin_reaches_far_enough(size, wanted, wrap, reach):
    across = Continuation.of(size, wanted, wrap, reach)
    for axis, length, longer, before, after, margin in zip(
        "yx", size, wanted, across.before, across.after, across.margins, strict=True
    ):
        assert (before - length) * longer == (after - longer) * length
        assert margin >= reach if axis in wrap else margin == 0
    values = Streams(0).normal((1, 2, *size), "values")
    shown = across.extend(values)
    assert shown.shape[-2:] == across.before
    assert across.crop(F.interpolate(shown, across.after)).shape[-2:] == wanted
    same = Continuation.of(size, size, wrap, reach)
    assert torch.equal(same.crop(same.extend(values)), values)


@pytest.mark.parametrize("wrap", ["x", "y", "xy"])
def test_what_lies_across_an_end_is_the_other_end(wrap):
    values = Streams(0).normal((1, 2, 6, 8), "values")
    across = Continuation.of((6, 8), (6, 8), wrap, 3)
    down, right = across.margins
    assert torch.equal(across.extend(values), F.pad(values, (right, right, down, down), mode="circular"))
