"""Views: where on the canvas the network looks. Pure integer geometry.

Lengths are latent cells. A window is contiguous, a lattice view is strided; both are pairs of slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from vitrail.core.fields import as_tuple
from vitrail.errors import CoverageError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

Tail = Literal["spread", "shift"]


@frozen(order=True)
class Span:
    """Every ``step``-th cell of one axis from ``start`` on, ``count`` of them."""

    start: int
    count: int
    step: int = 1

    @property
    def slice(self) -> slice:
        """As an index into the axis."""
        return slice(self.start, self.start + (self.count - 1) * self.step + 1, self.step)


@frozen(order=True)
class View:
    """A pair of spans into the canvas. Views sort by position: that is the canonical order."""

    vertical: Span
    horizontal: Span

    @property
    def rows(self) -> slice:
        """Index into the height: ``latents[..., view.rows, view.cols]``."""
        return self.vertical.slice

    @property
    def cols(self) -> slice:
        """Index into the width."""
        return self.horizontal.slice

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the network sees, in latent cells."""
        return self.vertical.count, self.horizontal.count


@frozen(eq=False)
class Patches:
    """What a patching answers at one step.

    Attributes:
        views: Of one shape each; together they cover the canvas, unless a fusion fills the rest.
        permutation: Which view each element of the model input comes from, or None.
            Int64[Tensor, "views #batch #channels height width"], a permutation along the first axis.
        key: Index of the key view, whose prediction structure guidance follows.
        clean_key: Whether the key view also gets a forward of its own outside the permutation; its
            prediction then stands for the key view's.
    """

    views: tuple[View, ...] = field(converter=as_tuple)
    permutation: Tensor | None = None
    key: int = 0
    clean_key: bool = False

    def __attrs_post_init__(self) -> None:
        shapes = {view.shape for view in self.views}
        if len(shapes) != 1:
            raise ShapeError(f"the views of one family must have one shape, got {sorted(shapes)}")
        if not 0 <= self.key < len(self.views):
            raise ShapeError(f"key view {self.key} of {len(self.views)} views")

    def canonical(self) -> Patches:
        """The same patches with their views sorted by position, so that no result depends on their order."""
        order = sorted(range(len(self.views)), key=lambda i: self.views[i])
        if order == list(range(len(self.views))):
            return self
        rank = {old: new for new, old in enumerate(order)}
        permutation = self.permutation
        if permutation is not None:
            ranks = permutation.new_tensor([rank[old] for old in range(len(order))])
            permutation = ranks[permutation[order]]
        return Patches([self.views[i] for i in order], permutation, rank[self.key], self.clean_key)


@frozen
class Canvas:
    """The canvas in latent cells, and the size the network was trained at.

    Attributes:
        height: Cells, padding included.
        width: Cells, padding included.
        native: Side of a training picture.
        pad_height: Cells at the bottom that are cut off in the end.
        pad_width: Cells at the right that are cut off in the end.
    """

    height: int
    width: int
    native: int
    pad_height: int = 0
    pad_width: int = 0

    def scale(self, axis: Literal["height", "width"]) -> int:
        """How many training sizes the picture takes along an axis, rounded half up, at least 1."""
        length = self.height - self.pad_height if axis == "height" else self.width - self.pad_width
        return max(1, math.floor(length / self.native + 0.5))

    def padded(self, down: int, right: int) -> Canvas:
        """The same picture on a canvas of multiples of (down, right)."""
        extra_height, extra_width = -self.height % down, -self.width % right
        return Canvas(
            self.height + extra_height,
            self.width + extra_width,
            self.native,
            self.pad_height + extra_height,
            self.pad_width + extra_width,
        )


def window_starts(length: int, window: int, stride: int, tail: Tail = "spread") -> tuple[int, ...]:
    """Starts of windows that cover an axis without slivers.

    Args:
        length: Cells of the axis.
        window: Cells of a window; the whole axis if it is longer.
        stride: Largest distance between neighbours.
        tail: ``spread`` shares the remainder among all gaps; ``shift`` keeps the stride and moves the
            last window back, as the DemoFusion family does.

    Returns:
        Sorted starts; the first is 0 and the last window ends at the end of the axis.
    """
    if length <= window:
        return (0,)
    gaps = math.ceil((length - window) / stride)
    if tail == "shift":
        return tuple(min(i * stride, length - window) for i in range(gaps + 1))
    return tuple((2 * i * (length - window) + gaps) // (2 * gaps) for i in range(gaps + 1))


def check_cover(views: Sequence[View], height: int, width: int) -> None:
    """Refuse a set of views that leaves a cell of the canvas out.

    Raises:
        CoverageError: With the first uncovered cell.
    """
    covered = [bytearray(width) for _ in range(height)]
    for view in views:
        mark = bytes([1]) * view.horizontal.count
        for y in range(height)[view.rows]:
            covered[y][view.cols] = mark
    for y, row in enumerate(covered):
        if 0 in row:
            raise CoverageError(f"latent cell ({y}, {row.index(0)}) of {height}x{width} lies in no view")
