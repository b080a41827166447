"""Views: where on the canvas the network looks. Pure integer geometry.

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
        start: The first cell.
        count: How many.
        step: From one to the next.
        length: Of the axis if its ends meet, so that the span may go on from one to the other; else None.
    """

    start: int
    count: int
    step: int = 1
    length: int | None = field(default=None, order=False)

    def __attrs_post_init__(self) -> None:
        if self.length is None:
            return
        if not 0 <= self.start < self.length or (self.count - 1) * self.step >= self.length:
            raise ShapeError(f"{self} does not begin on its axis or sees a cell twice")

    @property
    def slice(self) -> slice:
        """As an index into the axis.

        Raises:
            ShapeError: If the span goes across the ends.
        """
        pieces = self.pieces
        if len(pieces) > 1:
            raise ShapeError(f"{self} goes across the ends of its axis and is no slice; use `View.read` and its like")
        return pieces[0][0]

    @property
    def pieces(self) -> tuple[Part, ...]:
        """Its one or two parts on either side of the ends."""
        last = self.start + (self.count - 1) * self.step
        if self.length is None or last < self.length:
            return ((slice(self.start, last + 1, self.step), slice(0, self.count)),)
        before = math.ceil((self.length - self.start) / self.step)
        first = slice(self.start, self.length, self.step), slice(0, before)
        begin = self.start + before * self.step - self.length
        return first, (slice(begin, last - self.length + 1, self.step), slice(before, self.count))

    @property
    def is_round(self) -> bool:
        """Whether it goes all the way round an axis whose ends meet, so that it could begin at any cell."""
        return self.length is not None and self.count * self.step == self.length

    def rolled(self, cells: int) -> Span:
        """The same cells from another one on.

        Raises:
            ShapeError: If the span is not round, so that it would get other cells.
        """
        if cells == 0:
            return self
        if self.length is None or not self.is_round:
            raise ShapeError(f"{self} does not go round its axis, so it cannot be rolled by {cells}")
        return evolve(self, start=(self.start + cells * self.step) % self.length)


@frozen(eq=False)
class Piece:
    """A part of a view that goes across no end of the canvas.

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
    """A pair of spans into the canvas. Views sort by position: that is the canonical order.

    Attributes:
        vertical: Its rows.
        horizontal: Its columns.
        roll: From which of its cells on the network sees it, (down, right); for spans that are round. What is
            read, guided and fused is not rolled, so it does not count when views are compared.
    """

    vertical: Span
    horizontal: Span
    roll: tuple[int, int] = field(default=(0, 0), eq=False)

    @property
    def rows(self) -> slice:
        """Index into the height: ``latents[..., view.rows, view.cols]``, of a view that goes across no end."""
        return self.vertical.slice

    @property
    def cols(self) -> slice:
        """Index into the width, of a view that goes across no end."""
        return self.horizontal.slice

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Its parts, one unless it goes across an end, four at most."""
        return tuple(
            Piece(rows, cols, view_rows, view_cols)
            for rows, view_rows in self.vertical.pieces
            for cols, view_cols in self.horizontal.pieces
        )

    @property
    def rolled(self) -> View:
        """The cells as the network sees them."""
        return View(self.vertical.rolled(self.roll[0]), self.horizontal.rolled(self.roll[1]))

    def read(self, canvas: Tensor) -> Tensor:
        """Its cells of a canvas, Float[Tensor, "*lead height width"].

        Returns:
            Float[Tensor, "*lead h w"]: a slice of the canvas, or a copy if the view goes across an end.
        """
        pieces = self.pieces
        if len(pieces) == 1:
            return canvas[..., pieces[0].rows, pieces[0].cols]
        cells = canvas.new_empty((*canvas.shape[:-2], *self.shape))
        for piece in pieces:
            cells[..., piece.view_rows, piece.view_cols] = canvas[..., piece.rows, piece.cols]
        return cells

    def write(self, canvas: Tensor, values: Tensor) -> None:
        """Put values, Float[Tensor, "*lead h w"], into its cells of a canvas."""
        for piece in self.pieces:
            canvas[..., piece.rows, piece.cols] = values[..., piece.view_rows, piece.view_cols]

    def add_to(self, canvas: Tensor, values: Tensor) -> None:
        """Add values, Float[Tensor, "*lead h w"], to its cells of a canvas."""
        for piece in self.pieces:
            canvas[..., piece.rows, piece.cols] += values[..., piece.view_rows, piece.view_cols]

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
        shapes, rolls = {view.shape for view in self.views}, {view.roll for view in self.views}
        if len(shapes) != 1:
            raise ShapeError(f"the views of one family must have one shape, got {sorted(shapes)}")
        if len(rolls) != 1:
            raise ShapeError(f"the views of one family must be rolled alike, got {sorted(rolls)}")
        if not 0 <= self.key < len(self.views):
            raise ShapeError(f"key view {self.key} of {len(self.views)} views")

    @property
    def cells(self) -> int:
        """Latent cells of a view."""
        return math.prod(self.views[0].shape)

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
class Outline:
    """What can be told of patches before they are laid out, which is all that a plan needs.

    Attributes:
        count: Of the views.
        shape: Height and width of each, in latent cells.
        clean_key: As ``Patches.clean_key``.
    """

    count: int
    shape: tuple[int, int]
    clean_key: bool = False

    @classmethod
    def of(cls, patches: Patches) -> Outline:
        """Of patches that are laid out."""
        return cls(len(patches.views), patches.views[0].shape, patches.clean_key)

    @property
    def cells(self) -> int:
        """Latent cells of a view."""
        return math.prod(self.shape)

    @property
    def forwards(self) -> int:
        """Forwards of one branch: the views, and a clean key view."""
        return self.count + self.clean_key


@frozen
class Canvas:
    """The canvas in latent cells, and the size the network was trained at.

    Attributes:
        height: Cells, padding included.
        width: Cells, padding included.
        native: Side of a training picture.
        pad_height: Cells at the bottom that are cut off in the end.
        pad_width: Cells at the right that are cut off in the end.
        wrap: Axes whose ends meet; these are never padded.
        cell: Pixels of the side of a cell.
        cut: Pixels of the last cells that the picture does not have, (at the bottom, at the right).
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
        """The canvas of a picture in pixels; ``padded`` makes it fit a method."""
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
        """How many training sizes the picture takes along an axis, rounded half up, at least 1."""
        length = self.inner[0] if axis == "height" else self.inner[1]
        return max(1, math.floor(length / self.native + 0.5))

    def padded(self, down: int, right: int) -> Canvas:
        """The same picture on a canvas of multiples of (down, right).

        Raises:
            ConfigError: If an axis whose ends meet would have to be padded, with the nearest sizes that fit.
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
        """What is wrong with an axis whose ends meet, if it would be padded."""
        name, cut = ("height", self.cut[0]) if axis == "y" else ("width", self.cut[1])
        pixels, unit = length * self.cell - cut, factor * self.cell
        if not self.wraps(axis) or pixels % unit == 0:
            return ""
        why = f"{self.cell} to a latent cell" + (f", and {factor} strided views side by side" if factor > 1 else "")
        below = pixels // unit * unit
        rounded = math.floor(length / self.native + 0.5)  # another scale would have another stride
        fit = [p for p in (below, below + unit) if p and math.floor(p / self.cell / self.native + 0.5) == rounded]
        sizes = " or ".join(map(str, fit or [below + unit]))
        return f"wrap {self.wrap!r}: a {name} of {pixels} pixels must be a multiple of {unit} ({why}); try {sizes}"
