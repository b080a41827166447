"""Size of a forward's views relative to training pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitrail.core.method.protocols import Forward


def scale_of(forward: Forward) -> float:
    """Return the longer side of the views over the side of a training picture."""
    return max(forward.rows.views[0].shape) / forward.native_size


def is_larger(forward: Forward) -> bool:
    """Whether the views have more cells than a training picture."""
    height, width = forward.rows.views[0].shape
    return height * width > forward.native_size**2
