"""Which views of the canvas the network sees."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.fields import share_below_one
from vitrail.core.views import Patches, Span, Tail, View, window_starts

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.step import Step
    from vitrail.core.streams import Streams
    from vitrail.core.views import Canvas


@frozen
class Whole:
    """The whole canvas in one view: plain sampling."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """Any size."""
        return 1, 1

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """One view."""
        return Patches([View(Span(0, canvas.height), Span(0, canvas.width))])


@frozen(kw_only=True)
class Windows:
    """Overlapping windows of the training size.

    MultiDiffusion (Bar-Tal et al., 2023, https://arxiv.org/abs/2302.08113), sec. 4; jitter as in the code
    of DemoFusion (Du et al., 2023, https://arxiv.org/abs/2311.16973). A jittered window never leaves the
    canvas: those on the border stay, so that no window looks at padding.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    overlap: float = field(default=0.5, validator=share_below_one)  # share of a window
    jitter: bool = False  # move inner windows at random at each step, by up to a quarter of the overlap
    size: int | None = field(default=None, validator=v.optional(v.ge(1)))  # latent cells; the training size if unset
    tail: Tail = field(default="spread", validator=v.in_(("spread", "shift")))  # what the last gap does

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """Any size."""
        return 1, 1

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """Windows in row-major order; the first is the key view."""
        size = self.size or canvas.native
        height, width = min(size, canvas.height), min(size, canvas.width)
        tops = window_starts(canvas.height, height, self._stride(height), self.tail)
        lefts = window_starts(canvas.width, width, self._stride(width), self.tail)
        shifts = self._shifts(step, streams, tops, lefts, height, width)
        return Patches(
            View(Span(_within(top + dy, tops[-1]), height), Span(_within(left + dx, lefts[-1]), width))
            for (top, left), (dy, dx) in zip(((t, x) for t in tops for x in lefts), shifts, strict=True)
        )

    def _stride(self, length: int) -> int:
        return max(1, round(length * (1 - self.overlap)))

    def _shifts(
        self, step: Step, streams: Streams, tops: tuple[int, ...], lefts: tuple[int, ...], height: int, width: int
    ) -> list[tuple[int, int]]:
        if not self.jitter:
            return [(0, 0)] * (len(tops) * len(lefts))
        reach = [_reach(starts, length) for starts, length in ((tops, height), (lefts, width))]
        draws = streams.uniform((2, len(tops), len(lefts)), "jitter", step.index)
        vertical = _inner(draws[0], reach[0], axis=0)
        horizontal = _inner(draws[1], reach[1], axis=1)
        return [(dy, dx) for ys, xs in zip(vertical, horizontal, strict=True) for dy, dx in zip(ys, xs, strict=True)]


def _reach(starts: tuple[int, ...], window: int) -> int:
    """How far a window may move: a quarter of the smallest overlap, so that no cell is left out."""
    gaps = [b - a for a, b in pairwise(starts)]
    return (window - max(gaps)) // 4 if gaps else 0


def _within(start: int, last: int) -> int:
    """A start that leaves the window on the canvas; where windows lie dense, one may want to go further."""
    return min(max(start, 0), last)


def _inner(draws: Tensor, reach: int, axis: int) -> list[list[int]]:
    """Whole numbers in [-reach, reach] from uniform draws; 0 for the first and last along ``axis``."""
    moved = (draws * (2 * reach + 1)).long() - reach
    for border in (0, -1):
        moved.select(axis, border).zero_()
    result: list[list[int]] = moved.tolist()
    return result


@frozen(kw_only=True)
class Lattice:
    """Strided views of the canvas, each a small picture of the whole.

    CutDiffusion (Lin et al., 2024, https://arxiv.org/abs/2404.15141), stage 1, with its pixel interaction:
    at each position the views' values are exchanged by a random permutation, drawn anew at each step, or at
    every so many.

    The stride of an axis is its length over the training size, rounded half up; the canvas is padded to a
    multiple of it.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    interaction: Literal["none", "pixel", "element"] = field(
        default="element", validator=v.in_(("none", "pixel", "element"))
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
        down, right = self.granularity(canvas)
        height, width = canvas.height // down, canvas.width // right
        views = [View(Span(y, height, down), Span(x, width, right)) for y in range(down) for x in range(right)]
        if self.views == "key":
            return Patches(views[:1])
        views = sorted(views)
        clean = self.key == "extra" or (self.key == "auto" and len(views) > 4)
        depth = channels if self.interaction == "element" else 1
        order = self._order(step, streams, (len(views), 1, depth, height, width))
        exchanges = self.interaction != "none" and len(views) > 1
        return Patches(views, order, key=0, clean_key=clean and exchanges)

    def _order(self, step: Step, streams: Streams, shape: tuple[int, ...]) -> Tensor | None:
        if self.interaction == "none" or shape[0] == 1 or step.stage_step % self.interaction_every:
            return None
        draws = streams.uniform(shape, "permutation", step.index)
        if self.key == "excluded":
            draws[0] = -1.0  # sorts first: the key view keeps its own pixels
        return draws.argsort(dim=0, stable=True)  # ties occur; they must fall alike everywhere
