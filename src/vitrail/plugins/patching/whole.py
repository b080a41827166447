"""``whole``: the canvas as one view, and the roll of views that take a wrapped axis whole.

Where the ends of an axis meet (``Canvas.wrap``), a view that takes the whole axis has no edge on the canvas, but the
network pads it with zeros as if it had one. So the network sees such a view rolled, at each step by another number of
cells, and no cell is at an edge twice before each was there once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import evolve, frozen

from vitrail.core.geometry.views import Outline, Patches, Span, View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams


@frozen
class Whole:
    """The whole canvas in one view: plain sampling."""

    needs: ClassVar[frozenset[str]] = frozenset()
    shows_whole: ClassVar[bool] = True

    def granularity(self, canvas: Canvas) -> tuple[int, int]:
        """(1, 1): a canvas of any size is taken without padding."""
        return 1, 1

    def outline(self, step: Step, canvas: Canvas) -> Outline:
        """One view with the canvas's height and width in latent cells."""
        return Outline(1, (canvas.height, canvas.width))

    def patch(self, step: Step, canvas: Canvas, channels: int, streams: Streams) -> Patches:
        """One view of all latent cells, rolled along the axes that wrap."""
        down, right = wrapped_lengths(canvas)
        whole = View(Span(0, canvas.height, 1, down), Span(0, canvas.width, 1, right))
        return Patches(rolled_views([whole], step, streams))


def wrapped_lengths(canvas: Canvas) -> tuple[int | None, int | None]:
    """Latent cells of the vertical and the horizontal axis where its ends meet, else None."""
    return canvas.height if canvas.wraps("y") else None, canvas.width if canvas.wraps("x") else None


def rolled_views(views: Sequence[View], step: Step, streams: Streams) -> list[View]:
    """The same views, rolled along wrapped axes that they take whole.

    Args:
        views: Of one shape; the first one says which axes are taken whole.
        step: Its index chooses the roll: a permutation of all cells, one a step, over and over.
        streams: Draw that permutation under the purpose ``turn``, once for each axis.
    """

    def cells(span: Span, axis: int) -> int:
        if not span.is_round:
            return 0
        every = streams.uniform((span.count,), "turn", axis).argsort(stable=True)
        return int(every[step.index % span.count])

    roll = (cells(views[0].vertical, 0), cells(views[0].horizontal, 1))
    return list(views) if roll == (0, 0) else [evolve(view, roll=roll) for view in views]
