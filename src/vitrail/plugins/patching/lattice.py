"""``lattice``: strided views of the canvas, whose values are exchanged by random permutations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.geometry.views import Outline, Patches, Span, View
from vitrail.plugins.patching.whole import wrapped_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas
    from vitrail.core.schedule.step import Step
    from vitrail.core.schedule.streams import Streams

Interaction = Literal["none", "pixel", "element"]
INTERACTIONS = ("none", "pixel", "element")


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
        """The strides of the two axes: the canvas's sides over the training size, rounded half up."""
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
        """One view an offset, or the key view alone."""
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


def lattice_views(canvas: Canvas, down: int, right: int) -> list[View]:
    """One strided view for each offset, row-major.

    Args:
        canvas: Whose sides are multiples of the strides.
        down: Stride of the rows.
        right: Stride of the columns.
    """
    height, width = canvas.height // down, canvas.width // right
    tall, wide = wrapped_lengths(canvas)
    rows = [Span(y, height, down, tall) for y in range(down)]
    cols = [Span(x, width, right, wide) for x in range(right)]
    return [View(row, col) for row in rows for col in cols]


def outline_of_lattice(canvas: Canvas, down: int, right: int) -> Outline:
    """Number and shape of the views of ``lattice_views``, without laying them out."""
    return Outline(down * right, (canvas.height // down, canvas.width // right))


def exchange_order(draws: Tensor) -> Tensor:
    """A random permutation of the views at each position, Int64[Tensor, "views #batch #channels h w"].

    Args:
        draws: Uniform, of that shape.
    """
    return draws.argsort(dim=0, stable=True)  # ties occur; they must fall alike everywhere
