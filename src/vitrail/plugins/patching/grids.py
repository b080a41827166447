"""Which views of the canvas the network sees.

Where the ends of an axis meet (``Canvas.wrap``), windows lie evenly on a ring. A view that takes such an axis
whole has no edge on the canvas, but the network pads it with zeros as if it had: so the network sees it turned,
at each step by another number of cells, and no place is an edge twice before each was one.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.fields import share_below_one
from vitrail.core.geometry.views import Outline, Patches, Span, View

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

Tail = Literal["spread", "shift"]
Redraw = Literal["step", "size"]
Interaction = Literal["none", "pixel", "element"]
INTERACTIONS = ("none", "pixel", "element")


@frozen
class Whole:
    """The whole canvas in one view: plain sampling."""

    needs: ClassVar[frozenset[str]] = frozenset()
    shows_whole: ClassVar[bool] = True

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """Any size."""
        return 1, 1

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """One view of all."""
        return Outline(1, (canvas.height, canvas.width))

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """One view."""
        down, right = _lengths(canvas)
        whole = View(Span(0, canvas.height, 1, down), Span(0, canvas.width, 1, right))
        return Patches(turned_views([whole], step, streams))


@frozen(kw_only=True)
class Windows:
    """Overlapping windows of the training size.

    MultiDiffusion (Bar-Tal et al., 2023, https://arxiv.org/abs/2302.08113), sec. 4; jitter as in the code
    of DemoFusion (Du et al., 2023, https://arxiv.org/abs/2311.16973). A jittered window never leaves the
    canvas: those on the border stay, so that no window looks at padding. On an axis whose ends meet no window
    is on the border, and all move. AccDiffusion (Lin et al., 2024, https://arxiv.org/abs/2407.10738) draws the
    jitter once a size, so that its windows keep their texts.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    overlap: float = field(default=0.5, validator=share_below_one)  # share of a window
    jitter: bool = False  # move inner windows at random at each step, by up to a quarter of the overlap
    redraw: Redraw = field(default="step", validator=v.in_(("step", "size")))  # jitter anew at each step or once a size
    size: int | None = field(default=None, validator=v.optional(v.ge(1)))  # latent cells; the training size if unset
    tail: Tail = field(default="spread", validator=v.in_(("spread", "shift")))  # shift: keeps the stride
    # and moves the last window back; spread: all gaps share what is left over

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """Any size."""
        return 1, 1

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """Windows in row-major order; the first is the key view."""
        rows, cols = self._axes(canvas)
        shifts = self._shifts(step, streams, rows, cols)
        starts = ((top, left) for top in rows.starts for left in cols.starts)
        views = [View(rows.span(y, dy), cols.span(x, dx)) for (y, x), (dy, dx) in zip(starts, shifts, strict=True)]
        return Patches(turned_views(views, step, streams))

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """Their number, and the size of one."""
        rows, cols = self._axes(canvas)
        return Outline(len(rows.starts) * len(cols.starts), (rows.window, cols.window))

    def _axes(self, canvas: Canvas) -> tuple[_Axis, _Axis]:
        size = self.size or canvas.native
        rows = self._axis(canvas.height, size, canvas.wraps("y"))
        return rows, self._axis(canvas.width, size, canvas.wraps("x"))

    def _axis(self, length: int, size: int, wraps: bool) -> _Axis:
        window = min(size, length)
        stride = max(1, round(window * (1 - self.overlap)))
        return _Axis(length, window, window_starts(length, window, stride, self.tail, wraps), wraps)

    def _shifts(self, step: Step, streams: Streams, rows: _Axis, cols: _Axis) -> list[tuple[int, int]]:
        if not self.jitter:
            return [(0, 0)] * (len(rows.starts) * len(cols.starts))
        once = ("jitter of a size", step.phase) if self.redraw == "size" else ("jitter", step.index)
        draws = streams.uniform((2, len(rows.starts), len(cols.starts)), *once)
        vertical, horizontal = rows.shifts(draws[0], 0), cols.shifts(draws[1], 1)
        return [(dy, dx) for ys, xs in zip(vertical, horizontal, strict=True) for dy, dx in zip(ys, xs, strict=True)]


@frozen
class _Axis:
    """One axis of a canvas under windows, and whether its ends meet."""

    length: int
    window: int
    starts: tuple[int, ...]
    wraps: bool

    def span(self, start: int, shift: int) -> Span:
        """A window that has moved; where windows lie dense, one may want to leave the canvas, and must not."""
        if self.wraps:
            return Span((start + shift) % self.length, self.window, 1, self.length)
        return Span(min(max(start + shift, 0), self.starts[-1]), self.window)

    @property
    def reach(self) -> int:
        """How far a window may move: a quarter of the smallest overlap, so that no cell is left out."""
        if len(self.starts) == 1:
            return 0
        ends = (*self.starts, self.length) if self.wraps else self.starts
        return (self.window - max(b - a for a, b in pairwise(ends))) // 4

    def shifts(self, draws: Tensor, axis: int) -> list[list[int]]:
        """Whole numbers in [-reach, reach] from uniform draws; 0 for the first and last window, if there are such."""
        moved = (draws * (2 * self.reach + 1)).long() - self.reach
        for border in () if self.wraps else (0, -1):
            moved.select(axis, border).zero_()
        result: list[list[int]] = moved.tolist()
        return result


def window_starts(length: int, window: int, stride: int, tail: Tail = "spread", wraps: bool = False) -> tuple[int, ...]:
    """Starts of windows that cover an axis without slivers.

    Args:
        length: Cells of the axis.
        window: Cells of a window; the whole axis if it is longer.
        stride: Largest distance between neighbours.
        tail: ``spread`` shares the remainder among all gaps; ``shift`` keeps the stride and moves the
            last window back, as the DemoFusion family does.
        wraps: Whether the ends of the axis meet. Then no window is the last and has to be moved back: the one that
            goes across the ends comes the closer to the first with ``shift``.

    Returns:
        Sorted starts; the first is 0, and the last window ends at the end of the axis unless that wraps.
    """
    if length <= window:
        return (0,)
    room = length if wraps else length - window
    gaps = math.ceil(room / stride)
    count = gaps if wraps else gaps + 1
    if tail == "shift":
        return tuple(min(i * stride, room) for i in range(count))
    return tuple((2 * i * room + gaps) // (2 * gaps) for i in range(count))


def _lengths(canvas: Canvas) -> tuple[int | None, int | None]:
    """Lengths of the axes whose ends meet."""
    return canvas.height if canvas.wraps("y") else None, canvas.width if canvas.wraps("x") else None


def turned_views(views: list[View], step: Step, streams: Streams) -> list[View]:
    """The same views as the network is to see them: from another cell on along axes that they take whole."""

    def cells(span: Span, axis: int) -> int:
        if not span.is_round:
            return 0
        every = streams.uniform((span.count,), "turn", axis).argsort(stable=True)
        return int(every[step.index % span.count])

    turn = (cells(views[0].vertical, 0), cells(views[0].horizontal, 1))
    return views if turn == (0, 0) else [evolve(view, turn=turn) for view in views]


def lattice_views(canvas: Canvas, down: int, right: int) -> list[View]:
    """One strided view for each offset, row-major.

    Args:
        canvas: Whose sides are multiples of the strides.
        down: Stride of the rows.
        right: Stride of the columns.
    """
    height, width = canvas.height // down, canvas.width // right
    tall, wide = _lengths(canvas)
    rows = [Span(y, height, down, tall) for y in range(down)]
    cols = [Span(x, width, right, wide) for x in range(right)]
    return [View(row, col) for row in rows for col in cols]


def outline_of_lattice(canvas: Canvas, down: int, right: int) -> Outline:
    """What the views of ``lattice_views`` are like."""
    return Outline(down * right, (canvas.height // down, canvas.width // right))


def exchange_order(draws: Tensor) -> Tensor:
    """A random permutation of the views at each position, Int64[Tensor, "views #batch #channels h w"].

    Args:
        draws: Uniform, of that shape.
    """
    return draws.argsort(dim=0, stable=True)  # ties occur; they must fall alike everywhere


@frozen(kw_only=True)
class Lattice:
    """Strided views of the canvas, each a small picture of the whole.

    CutDiffusion (Lin et al., 2024, https://arxiv.org/abs/2404.15141), stage 1, with its pixel interaction:
    at each position the views' values are exchanged by a random permutation, drawn anew at each step, or at
    every so many.

    The stride of an axis is its length over the training size, rounded half up; the canvas is padded to a
    multiple of it, or must be one where the ends of the axis meet.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    shows_whole: ClassVar[bool] = True
    interaction: Interaction = field(
        default="element", validator=v.in_(INTERACTIONS)
    )  # exchange whole pixels, or each channel on its own
    interaction_every: int = field(default=1, validator=v.ge(1))  # steps of the stage between two exchanges
    key: Literal["among", "extra", "excluded", "auto"] = field(
        default="among", validator=v.in_(("among", "extra", "excluded", "auto"))
    )  # extra: a clean forward besides; excluded: out of the exchange; auto: extra above 4 views
    views: Literal["all", "key"] = field(default="all", validator=v.in_(("all", "key")))  # what the network sees

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """The strides."""
        return canvas.scale("height"), canvas.scale("width")

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """One view for each offset of the lattice, row-major; the key view is the one at (0, 0)."""
        views = lattice_views(canvas, *self.granularity(canvas))
        if self.views == "key":
            return Patches(views[:1])
        depth = channels if self.interaction == "element" else 1
        order = self._order(step, streams, (len(views), 1, depth, *views[0].shape))
        return Patches(views, order, key=0, clean_key=self._is_clean(len(views)))

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """As many views as offsets, or the key view alone."""
        outline = outline_of_lattice(canvas, *self.granularity(canvas))
        if self.views == "key":
            return Outline(1, outline.shape)
        return evolve(outline, clean_key=self._is_clean(outline.count))

    def _is_clean(self, count: int) -> bool:
        """Whether the key view gets a clean forward besides, among so many views that exchange their pixels."""
        exchanges = self.interaction != "none" and count > 1
        return exchanges and (self.key == "extra" or (self.key == "auto" and count > 4))

    def _order(self, step: Step, streams: Streams, shape: tuple[int, ...]) -> Tensor | None:
        if self.interaction == "none" or shape[0] == 1 or step.stage_step % self.interaction_every:
            return None
        draws = streams.uniform(shape, "permutation", step.index)
        if self.key == "excluded":
            draws[0] = -1.0  # sorts first: the key view keeps its own pixels
        return exchange_order(draws)
