"""``windows``: overlapping windows; along an axis whose ends meet (``Canvas.wrap``) they lie evenly on a ring."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.fields import later, share_below_one
from vitrail.core.geometry.views import Outline, Patches, Span, View
from vitrail.plugins.patching.whole import rolled_views

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

Tail = Literal["spread", "shift"]
Grid = Literal["fixed", "moving"]
Redraw = Literal["step", "size"]
Border = Literal["stay", "leave"]
Pad = Literal["none", "background"]


@frozen(kw_only=True)
class Windows:
    """Overlapping windows of the training size.

    MultiDiffusion (Bar-Tal et al., 2023, https://arxiv.org/abs/2302.08113), sec. 4; jitter as in the code
    of DemoFusion (Du et al., 2023, https://arxiv.org/abs/2311.16973). A jittered window never leaves the
    canvas: those on the border stay, so that no window looks at padding, unless ``border`` is ``leave``, as in that
    code: they move outwards, over zeros whose predictions are dropped. On an axis whose ends meet no window
    is on the border, and all move. AccDiffusion (Lin et al., 2024, https://arxiv.org/abs/2407.10738) draws the
    jitter once a size, so that its windows keep their texts.

    A moving grid is that of SpotDiffusion (Frolov et al., 2024, https://arxiv.org/abs/2407.15507), sec. 3: all windows
    are moved together at each step, so that the seams of a step lie within windows of the next and no overlap is
    needed. On an axis whose ends do not meet, windows that would leave the canvas stop at its border, and there are as
    many as leave the seams at least half a window to move in.

    Context is that of ElasticDiffusion (Haji-Ali et al., 2023, https://arxiv.org/abs/2311.18822): the network sees more
    than a window, and its answer counts in the window. At a border that side's half is taken on the other side; where
    window and context reach the length of an axis, one window takes it whole.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    overlap: float = field(default=0.5, validator=share_below_one)  # share of a window
    jitter: bool = False  # move inner windows at random at each step, by up to a quarter of the overlap
    grid: Grid = later(default="fixed", validator=v.in_(("fixed", "moving")))  # move all windows together at random
    redraw: Redraw = field(default="step", validator=v.in_(("step", "size")))  # move anew at each step or once a size
    size: int | None = field(default=None, validator=v.optional(v.ge(1)))  # latent cells; the training size if unset
    tail: Tail = field(default="spread", validator=v.in_(("spread", "shift")))  # shift: keeps the stride
    # and moves the last window back; spread: all gaps share what is left over
    border: Border = later(default="stay", validator=v.in_(("stay", "leave")))  # with jitter: whether windows on the
    # border stay or leave the canvas, over zeros
    context: float = later(default=0.0, validator=v.ge(0))  # share of a window that the network sees besides, half of
    # it on either side; what it says of that is dropped
    pad: Pad = later(default="none", validator=v.in_(("none", "background")))  # on an axis shorter than a window:
    # background: keep its size, over a noised plain colour; none: become as short

    def __attrs_post_init__(self) -> None:
        if self.border == "leave" and not self.jitter:
            raise ValueError("'border = \"leave\"' is about windows that jitter; set jitter = true, or leave it out")
        if self.border == "leave" and (self.context or self.pad != "none"):
            raise ValueError(
                "windows that leave the canvas look at zeros, and those with 'context' or 'pad' at other cells; set "
                'border = "stay", or leave the others out'
            )
        if self.jitter and self.grid == "moving":
            raise ValueError('jitter moves each window and grid = "moving" all of them; choose one')
        if self.grid == "moving" and self.tail != "spread":
            raise ValueError(
                "'tail' is about windows that stay; with grid = \"moving\" they keep their stride, so leave it out"
            )

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """(1, 1): a canvas of any size is taken without padding."""
        return 1, 1

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """Windows in row-major order; the first is the key view."""
        rows, cols = self._axes(canvas)
        if self.grid == "moving":
            rows, cols = self._moved(step, streams, rows, cols)
        shifts = self._shifts(step, streams, rows, cols)
        starts = ((top, left) for top in rows.starts for left in cols.starts)
        views = [View(rows.span(y, dy), cols.span(x, dx)) for (y, x), (dy, dx) in zip(starts, shifts, strict=True)]
        return Patches(rolled_views(views, step, streams))

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """The number of windows, and the height and width of one in latent cells."""
        rows, cols = self._axes(canvas)
        return Outline(len(rows.starts) * len(cols.starts), (rows.seen, cols.seen))

    def needs_background(self, canvas: Canvas) -> bool:
        """Whether an axis is shorter than a window that keeps its size there."""
        return any(axis.seen > axis.length for axis in self._axes(canvas))

    def _axes(self, canvas: Canvas) -> tuple[_Axis, _Axis]:
        size = self.size or canvas.native
        rows = self._axis(canvas.height, size, canvas.wraps("y"))
        return rows, self._axis(canvas.width, size, canvas.wraps("x"))

    def _axis(self, length: int, size: int, wraps: bool) -> _Axis:
        if length < size and self.pad == "background" and not wraps:
            return _Axis(length, size, (0,), wraps)
        window, context = min(size, length), round(min(size, length) * self.context)
        if window + context >= length:
            window, context = length, 0
        stride = max(1, round(window * (1 - self.overlap)))
        moves = self.grid == "moving" and length > window and not wraps
        starts = (
            moving_starts(length, window, stride) if moves else window_starts(length, window, stride, self.tail, wraps)
        )
        step = stride if self.tail == "shift" else None
        return _Axis(length, window, starts, wraps, step, self.border == "leave", context)

    def _moved(self, step: Step, streams: Streams, rows: _Axis, cols: _Axis) -> tuple[_Axis, _Axis]:
        once = ("grid of a size", step.phase) if self.redraw == "size" else ("grid", step.index)
        draws = streams.uniform((2,), *once).tolist()
        return rows.moved(draws[0]), cols.moved(draws[1])

    def _shifts(self, step: Step, streams: Streams, rows: _Axis, cols: _Axis) -> list[tuple[int, int]]:
        if not self.jitter:
            return [(0, 0)] * (len(rows.starts) * len(cols.starts))
        once = ("jitter of a size", step.phase) if self.redraw == "size" else ("jitter", step.index)
        draws = streams.uniform((2, len(rows.starts), len(cols.starts)), *once)
        vertical, horizontal = rows.shifts(draws[0], 0), cols.shifts(draws[1], 1)
        return [(dy, dx) for ys, xs in zip(vertical, horizontal, strict=True) for dy, dx in zip(ys, xs, strict=True)]


@frozen
class _Axis:
    """One axis of a canvas under windows.

    Attributes:
        length: Cells of the axis.
        window: Cells of a window.
        starts: First cells of the windows, before they move.
        wraps: Whether the ends of the axis meet.
        stride: Distance that the windows keep; None if they spread.
        leaves: Whether windows on the border may leave the axis.
        context: Cells that the network sees besides.
    """

    length: int
    window: int
    starts: tuple[int, ...]
    wraps: bool
    stride: int | None = None
    leaves: bool = False
    context: int = 0

    @property
    def seen(self) -> int:
        """Cells of a window with its context."""
        return self.window + self.context

    def span(self, start: int, shift: int) -> Span:
        """A window moved by ``shift`` cells, held within the canvas unless the axis wraps or may be left."""
        if self.window > self.length:
            return Span((self.length - self.window) // 2, self.window, limit=self.length)
        before = self.context // 2
        if self.wraps:
            around = (before, self.context - before)
            return Span((start + shift - before) % self.length, self.seen, 1, self.length, context=around)
        moved = start + shift
        held = min(max(moved, 0), self.starts[-1])
        if self.leaves and moved != held:
            return Span(moved, self.window, limit=self.length)
        first = min(max(held - before, 0), self.length - self.seen)
        before = held - first
        return Span(first, self.seen, context=(before, self.context - before))

    def moved(self, draw: float) -> _Axis:
        """All windows moved back together, by a share in [0, 1) of the way that leaves no cell uncovered."""
        if len(self.starts) == 1:
            return self
        last, farthest = self.length - self.window, self.starts[1] - self.starts[0] - 1
        if self.wraps:
            offset = int(draw * (farthest + 1))
            return evolve(self, starts=tuple((start - offset) % self.length for start in self.starts))
        most = min(farthest, self.starts[-1] - last)
        least = min(most, 1) if self.starts[-2] >= last else 0  # else the last two would stop at one place
        offset = least + int(draw * (most - least + 1))
        return evolve(self, starts=tuple(min(max(start - offset, 0), last) for start in self.starts))

    @property
    def reach(self) -> int:
        """Cells by which a window may move: a quarter of the smallest overlap, so that every cell stays covered.

        Where windows keep their stride it is a quarter of that overlap, also if the last one is nearer.
        """
        if len(self.starts) == 1:
            return 0
        ends = (*self.starts, self.length) if self.wraps else self.starts
        return (self.window - (self.stride or max(b - a for a, b in pairwise(ends)))) // 4

    def shifts(self, draws: Tensor, axis: int) -> list[list[int]]:
        """Whole numbers in [-reach, reach] from uniform draws.

        0 for the first and last window, if there are such; or outwards alone, if they may leave the axis.
        """
        moved = (draws * (2 * self.reach + 1)).long() - self.reach
        outwards = (draws * (self.reach + 1)).long() if self.leaves else None
        for border, sign in () if self.wraps else ((0, -1), (-1, 1)):
            own = moved.select(axis, border)
            own.zero_() if outwards is None else own.copy_(sign * outwards.select(axis, border))
        result: list[list[int]] = moved.tolist()
        return result


def window_starts(length: int, window: int, stride: int, tail: Tail = "spread", wraps: bool = False) -> tuple[int, ...]:
    """Starts of windows that cover an axis without slivers.

    Args:
        length: Cells of the axis.
        window: Cells of a window; the whole axis if it is longer.
        stride: Largest distance between neighbours.
        tail: ``spread`` shares the remainder among all gaps; ``shift`` keeps the stride and moves the
            last window back, as DemoFusion and its successors do.
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


def moving_starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Starts of windows that cover an axis wherever they are moved back by up to half a stride, or more.

    Args:
        length: Cells of the axis, more than those of a window.
        window: Cells of a window.
        stride: Distance between neighbours.

    Returns:
        Multiples of the stride; the last window reaches beyond the end by at least half a stride.
    """
    room = math.ceil(stride / 2)
    return tuple(i * stride for i in range(math.ceil((length + room - window) / stride) + 1))
