"""The regions of a run: in canonical order, placed on canvases, and asked for in views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from vitrail.core.engine.asked import AskedPairs, CanvasPart
from vitrail.core.engine.micro_batches import permute_views
from vitrail.core.engine.region_areas import area_of_box, area_of_mask, feathered, shares_of
from vitrail.core.geometry.views import Patches
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.config.region import Region
    from vitrail.core.geometry.views import Canvas, Span, View
    from vitrail.core.schedule.step import Step

GEOMETRIES = 16  # sets of views whose pairs are kept; jittered windows are others at every step


@frozen(eq=False)
class PlacedRegion:
    """A region with its number in the run's list, and the mask that it names.

    Attributes:
        number: Index into the run's regions, for messages.
        region: Its settings.
        mask: Values of its mask picture in [0, 1], Float32[Tensor, "Height Width"] on the CPU; None for a box.
        digest: Of the mask's values; "" for a box.
    """

    number: int
    region: Region
    mask: Tensor | None = None
    digest: str = ""

    @property
    def order(self) -> tuple[object, ...]:
        """Key of the canonical order, which depends on what a region says and not on where it is listed."""
        own = self.region
        texts = (own.prompt, own.negative_prompt is not None, own.negative_prompt or "")
        return (*texts, own.box, self.digest, own.weight, own.feather, own.bootstrap)

    def area(self, canvas: Canvas) -> Tensor:
        """Return how far every cell lies in the region, Float32[Tensor, "height width"] in [0, 1], no padding.

        Raises:
            ConfigError: If it has no cell of the canvas.
        """
        area = area_of_box(self.region.box, canvas) if self.mask is None else area_of_mask(self.mask, canvas)
        area = feathered(area, self.region.feather, canvas)
        if not bool(area.any()):
            height, width = canvas.picture
            what = "box holds the centre of none" if self.mask is None else "mask is black in all"
            raise ConfigError(
                f"regions.{self.number}: its {what} of the {canvas.inner[0]}x{canvas.inner[1]} latent cells of a "
                f"picture of {width}x{height} pixels; make it larger, or leave the region out"
            )
        return area


def _canonical(regions: Sequence[PlacedRegion]) -> tuple[PlacedRegion, ...]:
    return tuple(sorted(regions, key=lambda each: each.order))


@define(eq=False)
class Regions:
    """All regions of a run; without any every view is asked once, with the run's texts.

    Attributes:
        placed: The regions, in canonical order; text ``i + 1`` is that of region ``i``, text 0 the run's.
        prompt: The run's prompt.
        negative_prompt: The run's negative prompt, or None.
    """

    placed: tuple[PlacedRegion, ...] = field(factory=tuple, converter=_canonical)
    prompt: str = ""
    negative_prompt: str | None = None
    _shares: dict[Canvas, Tensor] = field(factory=dict, init=False)
    _pairs: dict[tuple[Canvas, tuple[View, ...], bool], AskedPairs] = field(factory=dict, init=False)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.placed)

    def texts(self, text: int) -> tuple[str | None, str | None]:
        """Return prompt and negative prompt of a text, None where they are the run's."""
        if text == 0:
            return None, None
        own = self.placed[text - 1].region
        negative = None if own.negative_prompt == self.negative_prompt else own.negative_prompt
        return (None if own.prompt == self.prompt and negative is None else own.prompt), negative

    def prompts(self) -> tuple[str, ...]:
        """Return the prompt of every text."""
        return (self.prompt, *(each.region.prompt for each in self.placed))

    def shares(self, canvas: Canvas) -> Tensor:
        """Return the share of every text in every cell, Float32[Tensor, "texts height width"]; see ``shares_of``.

        Raises:
            ConfigError: Naming a region that has no cell of the canvas.
        """
        import torch

        if canvas not in self._shares:
            with torch.inference_mode(False), torch.no_grad():  # later calls may be in any mode
                areas = torch.stack([each.area(canvas) for each in self.placed])
                self._shares[canvas] = shares_of(areas, [each.region.weight for each in self.placed], canvas)
        return self._shares[canvas]

    def count_present(self, canvas: Canvas) -> int:
        """Return the number of texts that have a share of the canvas: what a question about all of it asks with."""
        return len(self._present(canvas)) if self else 1

    def _present(self, canvas: Canvas) -> list[int]:
        """Return the texts that have a share of the canvas."""
        present: list[int] = self.shares(canvas).flatten(1).any(-1).nonzero().flatten().tolist()
        return present

    def asked(self, canvas: Canvas, patches: Patches) -> AskedPairs:
        """Return which entries of a group's input, its views and a clean key view, are asked with which texts.

        Where views exchange values each is asked with all texts, since each has a part of all others.

        Args:
            canvas: The canvas.
            patches: The views, in canonical order.
        """
        if not self:
            return AskedPairs.once(len(patches.views) + patches.clean_key)
        place = (canvas, patches.views, patches.clean_key)
        if patches.permutation is None and place in self._pairs:
            return self._pairs[place]
        pairs = AskedPairs.by_share(
            permute_views(self._seen(canvas, patches), patches), always=patches.permutation is not None
        )
        if patches.permutation is None:
            while len(self._pairs) >= GEOMETRIES:
                self._pairs.pop(next(iter(self._pairs)))
            self._pairs[place] = pairs
        return pairs

    def _seen(self, canvas: Canvas, patches: Patches) -> Tensor:
        """Return the texts' shares in every view, Float32[Tensor, "views texts #channels h w"]."""
        import torch

        shares = self.shares(canvas)
        seen = torch.stack([view.read(shares) for view in patches.views])[:, :, None]
        depth = 1 if patches.permutation is None else patches.permutation.shape[2]
        return seen.expand(-1, -1, depth, -1, -1)

    def asked_of(self, canvas: Canvas, shown: CanvasPart) -> AskedPairs:
        """Return the texts that a question about a view is asked with: all that have a share of the canvas.

        So many are known before the view is. Where the view goes beyond the canvas the edge is repeated.

        Args:
            canvas: The canvas.
            shown: Any part of it.
        """
        if not self:
            return AskedPairs.once(1)
        present = self._present(canvas)
        if present == [0]:
            return AskedPairs.once(1)
        rows, cols = shown.cells or (
            _cells(shown.view.vertical, canvas.height),
            _cells(shown.view.horizontal, canvas.width),
        )
        seen = self.shares(canvas)[:, list(rows)][:, :, list(cols)]
        return AskedPairs([(0, text) for text in present], seen[present][:, None, None])

    def bootstrapped(self, step: Step, canvas: Canvas) -> list[int]:
        """Return the texts that are asked at a step with a plain colour in place of what lies outside their region."""
        if step.phase > 0:
            return []
        shares = self.shares(canvas) if self else ()
        return [
            text
            for text, each in enumerate(self.placed, 1)
            if step.phase_step < math.floor(each.region.bootstrap * step.phase_num_steps + 0.5)
            and bool((shares[text] == 0).any())
        ]


def _cells(span: Span, length: int) -> list[int]:
    """Return the cells of a span; beyond an end of the axis the last one there, or across it where its ends meet."""
    cells = range(span.start, span.start + span.count * span.step, span.step)
    return [i % span.length if span.length is not None else min(max(i, 0), length - 1) for i in cells]
