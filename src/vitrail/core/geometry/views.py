"""Views: the parts of the canvas that the network sees. Pure integer geometry.

Lengths are latent cells. A window is contiguous, a lattice view is strided; both are pairs of spans.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.errors import ConfigError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.run_config import Wrap

Axis = Literal["x", "y"]
Part = tuple[slice, slice]  # index into an axis, index into a span


@frozen(order=True)
class Span:
    """Every ``step``-th cell of one axis from ``start`` on, ``count`` of them.

    Attributes:
        start: Index of the first cell.
        count: Number of cells.
        step: Distance between neighbouring cells.
        length: Length of the axis if its ends meet, so that the span may continue across them; else None.
        limit: Length of an axis that the span leaves at an end, where cells read as 0 and are not written; else None.
        context: Cells at either end that are read and not written: what is said of them is dropped.

    Raises:
        ShapeError: If the axis wraps and the span starts outside it or contains a cell twice, if the span lies wholly
            outside, or if it is all context.
    """

    start: int
    count: int
    step: int = 1
    length: int | None = field(default=None, order=False)
    limit: int | None = field(default=None, order=False)
    context: tuple[int, int] = (0, 0)

    def __attrs_post_init__(self) -> None:
        if min(self.context) < 0 or sum(self.context) >= max(1, self.count):
            raise ShapeError(f"{self} has no cell besides its context")
        if self.limit is not None and (self.length is not None or not self._inside):
            raise ShapeError(f"{self} may leave its axis and has no cell on it, or goes across ends that meet")
        if self.length is None:
            return
        if not 0 <= self.start < self.length or (self.count - 1) * self.step >= self.length:
            raise ShapeError(f"{self} does not begin on its axis or sees a cell twice")

    @property
    def slice(self) -> slice:
        """The span as an index into its axis.

        Raises:
            ShapeError: If the span crosses the ends of the axis, or leaves it.
        """
        pieces = self.pieces
        if len(pieces) > 1 or self.leaves:
            raise ShapeError(f"{self} goes across the ends of its axis and is no slice; use `View.read` and its like")
        return pieces[0][0]

    @property
    def leaves(self) -> bool:
        """Whether some cells of the span lie beyond the ends of its axis."""
        return len(self._inside) < self.count

    @property
    def _inside(self) -> range:
        """Indices into the span of its cells on the axis."""
        if self.limit is None:
            return range(self.count)
        first, end = -(min(self.start, 0) // self.step), -((self.start - self.limit) // self.step)
        return range(first, max(first, min(self.count, end)))

    @property
    def pieces(self) -> tuple[Part, ...]:
        """The span's contiguous parts: two if it crosses the ends of the axis, else one."""
        inside = self._inside
        last = self.start + (inside.stop - 1) * self.step
        if self.length is None or last < self.length:
            begin = self.start + inside.start * self.step
            return ((slice(begin, last + 1, self.step), slice(inside.start, inside.stop)),)
        before = math.ceil((self.length - self.start) / self.step)
        first = slice(self.start, self.length, self.step), slice(0, before)
        begin = self.start + before * self.step - self.length
        return first, (slice(begin, last - self.length + 1, self.step), slice(before, self.count))

    @property
    def written(self) -> tuple[Part, ...]:
        """The contiguous parts of the span without its context: the cells that its answer counts for."""
        before, after = self.context
        if before == after == 0:
            return self.pieces
        start = self.start + before * self.step
        inner = evolve(
            self,
            start=start if self.length is None else start % self.length,
            count=self.count - before - after,
            context=(0, 0),
        )
        return tuple((axis, slice(own.start + before, own.stop + before)) for axis, own in inner.pieces)

    @property
    def is_round(self) -> bool:
        """Whether the span covers a whole axis whose ends meet, so that it could start at any cell."""
        return self.length is not None and self.count * self.step == self.length

    def rolled(self, cells: int) -> Span:
        """Return the same cells, starting ``cells`` cells later.

        Raises:
            ShapeError: If the span does not cover a wrapped axis, so that the shift would select other cells.
        """
        if cells == 0:
            return self
        if self.length is None or not self.is_round:
            raise ShapeError(f"{self} does not go round its axis, so it cannot be rolled by {cells}")
        return evolve(self, start=(self.start + cells * self.step) % self.length)


@frozen(eq=False)
class Piece:
    """A part of a view that does not cross the ends of the canvas.

    Attributes:
        rows: Index into the height of the canvas.
        cols: Index into the width of the canvas.
        view_rows: Index into the height of the view.
        view_cols: Index into the width of the view.
    """

    rows: slice
    cols: slice
    view_rows: slice
    view_cols: slice


@frozen(order=True)
class View:
    """A pair of spans into the canvas. Views sort by position, which is their canonical order.

    Attributes:
        vertical: Span of its rows.
        horizontal: Span of its columns.
        roll: Offset (down, right), in cells of the view, at which the network's input starts; only for spans that cover
            a wrapped axis. It applies to the network's input alone, not to what is read, guided and fused, so it is
            ignored when views are compared.
    """

    vertical: Span
    horizontal: Span
    roll: tuple[int, int] = field(default=(0, 0), eq=False)

    @property
    def rows(self) -> slice:
        """Index into the height, ``latents[..., view.rows, view.cols]``, of a view that does not cross the ends."""
        return self.vertical.slice

    @property
    def cols(self) -> slice:
        """Index into the width, of a view that does not cross the ends of the canvas."""
        return self.horizontal.slice

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The view's contiguous parts: one, or up to four if it crosses the ends of the canvas."""
        return _pieces(self.vertical.pieces, self.horizontal.pieces)

    @property
    def written(self) -> tuple[Piece, ...]:
        """The contiguous parts of the view without its context, to which ``write`` and ``add_to`` keep."""
        return _pieces(self.vertical.written, self.horizontal.written)

    @property
    def leaves(self) -> bool:
        """Whether some cells of the view lie beyond the ends of the canvas."""
        return self.vertical.leaves or self.horizontal.leaves

    @property
    def rolled(self) -> View:
        """The view with its cells in the order in which the network sees them."""
        return View(self.vertical.rolled(self.roll[0]), self.horizontal.rolled(self.roll[1]))

    def read(self, canvas: Tensor) -> Tensor:
        """Read the view's cells from a canvas, Float[Tensor, "*lead height width"].

        Returns:
            Float[Tensor, "*lead h w"]: a slice of the canvas, or a copy if the view crosses an end of the canvas, with
            zeros for cells beyond an end that it leaves.
        """
        pieces, leaves = self.pieces, self.leaves
        if len(pieces) == 1 and not leaves:
            return canvas[..., pieces[0].rows, pieces[0].cols]
        shape = (*canvas.shape[:-2], *self.shape)
        cells = canvas.new_zeros(shape) if leaves else canvas.new_empty(shape)
        for piece in pieces:
            cells[..., piece.view_rows, piece.view_cols] = canvas[..., piece.rows, piece.cols]
        return cells

    def write(self, canvas: Tensor, values: Tensor) -> None:
        """Write values, Float[Tensor, "*lead h w"], into the view's cells of a canvas, in place; not its context."""
        for piece in self.written:
            canvas[..., piece.rows, piece.cols] = values[..., piece.view_rows, piece.view_cols]

    def add_to(self, canvas: Tensor, values: Tensor) -> None:
        """Add values, Float[Tensor, "*lead h w"], to the view's cells of a canvas, in place; not its context."""
        for piece in self.written:
            canvas[..., piece.rows, piece.cols] += values[..., piece.view_rows, piece.view_cols]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the network sees, in latent cells."""
        return self.vertical.count, self.horizontal.count


def _pieces(vertical: tuple[Part, ...], horizontal: tuple[Part, ...]) -> tuple[Piece, ...]:
    """Return every pair of a part of the rows and one of the columns."""
    return tuple(
        Piece(rows, cols, view_rows, view_cols) for rows, view_rows in vertical for cols, view_cols in horizontal
    )


@frozen(eq=False)
class Patches:
    """The views of one group at one step, as a patching returns them.

    Attributes:
        views: Views of one shape; together they cover the canvas, unless a fusion fills the rest.
        permutation: Index of the view that each element of the model input comes from, or None. Int64[Tensor, "views
            #batch #channels height width"], a permutation along the first axis.
        key: Index of the key view, whose prediction structure guidance follows.
        clean_key: Whether the key view also gets a forward of its own outside the permutation, whose prediction then
            replaces the key view's.
        numbers: Number of each view in the order in which the patching laid them out; () if that is their order.

    Raises:
        ShapeError: If the views differ in shape or roll, or ``key`` is out of range.
    """

    views: tuple[View, ...] = field(converter=as_tuple)
    permutation: Tensor | None = None
    key: int = 0
    clean_key: bool = False
    numbers: tuple[int, ...] = field(converter=as_tuple, default=())

    def __attrs_post_init__(self) -> None:
        shapes, rolls = {view.shape for view in self.views}, {view.roll for view in self.views}
        if len(shapes) != 1:
            raise ShapeError(f"the views of one view group must have one shape, got {sorted(shapes)}")
        if len(rolls) != 1:
            raise ShapeError(f"the views of one view group must be rolled alike, got {sorted(rolls)}")
        if not 0 <= self.key < len(self.views):
            raise ShapeError(f"key view {self.key} of {len(self.views)} views")

    @property
    def cells(self) -> int:
        """Number of latent cells of a view."""
        return math.prod(self.views[0].shape)

    @property
    def key_entry(self) -> int:
        """Number of the key view's entry in the network's input: that of the clean key view, if there is one."""
        return len(self.views) if self.clean_key else self.key

    def canonical(self) -> Patches:
        """Return the patches with their views sorted by position, so that no result depends on their order."""
        order = sorted(range(len(self.views)), key=lambda i: self.views[i])
        if order == list(range(len(self.views))):
            return self
        rank = {old: new for new, old in enumerate(order)}
        permutation = self.permutation
        if permutation is not None:
            ranks = permutation.new_tensor([rank[old] for old in range(len(order))])
            permutation = ranks[permutation[order]]
        numbers = [self.numbers[i] for i in order] if self.numbers else order
        return Patches([self.views[i] for i in order], permutation, rank[self.key], self.clean_key, numbers)


@frozen
class Outline:
    """Number and shape of the views of a patching, known without laying them out; enough for a plan.

    Attributes:
        count: Number of views.
        shape: Height and width of each view, in latent cells.
        clean_key: As ``Patches.clean_key``.
    """

    count: int
    shape: tuple[int, int]
    clean_key: bool = False

    @classmethod
    def of(cls, patches: Patches) -> Outline:
        """Return the outline of patches that are laid out."""
        return cls(len(patches.views), patches.views[0].shape, patches.clean_key)

    @property
    def cells(self) -> int:
        """Number of latent cells of a view."""
        return math.prod(self.shape)

    @property
    def forwards(self) -> int:
        """Number of forwards of one CFG branch: one per view, and one for a clean key view."""
        return self.count + self.clean_key


@frozen
class Canvas:
    """The canvas in latent cells, and the size that the network was trained at.

    Attributes:
        height: Height in cells, padding included.
        width: Width in cells, padding included.
        native: Side of a training picture in cells.
        pad_height: Padding cells at the bottom, cropped at the end.
        pad_width: Padding cells at the right, cropped at the end.
        wrap: Axes whose ends meet; these are never padded.
        cell: Side of a cell in pixels.
        cut: Pixels by which the last cells exceed the picture, (bottom, right).
    """

    height: int
    width: int
    native: int
    pad_height: int = 0
    pad_width: int = 0
    wrap: Wrap = "none"
    cell: int = 1
    cut: tuple[int, int] = (0, 0)

    @classmethod
    def of_picture(cls, height: int, width: int, cell: int, native: int, wrap: Wrap = "none") -> Canvas:
        """Return the unpadded canvas of a picture; ``padded`` makes it fit a method.

        Args:
            height: Height of the picture, pixels; need not be a multiple of ``cell``.
            width: Width of the picture, pixels.
            cell: Side of a latent cell, pixels.
            native: Side of a training picture, latent cells.
            wrap: Axes whose ends meet.
        """
        down, right = -(-height // cell), -(-width // cell)
        cut = (down * cell - height, right * cell - width)
        return cls(down, right, native, wrap=wrap, cell=cell, cut=cut)

    def wraps(self, axis: Axis) -> bool:
        """Whether the ends of an axis meet: left and right for ``x``, top and bottom for ``y``."""
        return self.wrap != "none" and axis in self.wrap

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width in cells, without padding."""
        return self.height - self.pad_height, self.width - self.pad_width

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels, without padding."""
        return self.inner[0] * self.cell - self.cut[0], self.inner[1] * self.cell - self.cut[1]

    def scale(self, axis: Literal["height", "width"]) -> int:
        """Return how many training sizes the picture spans along an axis, rounded half up, at least 1."""
        length = self.inner[0] if axis == "height" else self.inner[1]
        return max(1, math.floor(length / self.native + 0.5))

    def padded(self, down: int, right: int) -> Canvas:
        """Return the same picture on a canvas padded to multiples of (down, right) cells.

        Raises:
            ConfigError: If an axis whose ends meet would have to be padded; names the nearest sizes that fit.
        """
        lines = (self._misfit("y", self.height, down), self._misfit("x", self.width, right))
        if any(lines):
            raise ConfigError("\n".join(filter(None, lines)))
        extra_height, extra_width = -self.height % down, -self.width % right
        return evolve(
            self,
            height=self.height + extra_height,
            width=self.width + extra_width,
            pad_height=self.pad_height + extra_height,
            pad_width=self.pad_width + extra_width,
        )

    def _misfit(self, axis: Axis, length: int, factor: int) -> str:
        """Return the error text for a wrapped axis that would need padding to a multiple of ``factor``, else ""."""
        name, cut = ("height", self.cut[0]) if axis == "y" else ("width", self.cut[1])
        pixels, unit = length * self.cell - cut, factor * self.cell
        if not self.wraps(axis) or pixels % unit == 0:
            return ""
        why = f"{self.cell} to a latent cell" + (f", and {factor} strided views side by side" if factor > 1 else "")
        below = pixels // unit * unit
        rounded = math.floor(length / self.native + 0.5)  # a size of another scale would have another stride
        fit = [p for p in (below, below + unit) if p and math.floor(p / self.cell / self.native + 0.5) == rounded]
        sizes = " or ".join(map(str, fit or [below + unit]))
        return f"wrap {self.wrap!r}: a {name} of {pixels} pixels must be a multiple of {unit} ({why}); try {sizes}"
