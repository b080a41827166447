"""``patch-content-aware``: a text for each view, of the words whose attention is high there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple, later, share, share_below_half
from vitrail.core.method.attention_maps import AttentionRequest

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.attention_maps import KeptMaps
    from vitrail.core.schedule.step import Step


@frozen(kw_only=True)
class PatchContentAware:
    """For each window the words of the prompt that an earlier stage saw there.

    AccDiffusion (Lin et al., 2024, https://arxiv.org/abs/2407.10738), eq. 5 to 9. A word's map is binarised
    at its own mean and opened, that is eroded and then dilated, which takes specks away; a window keeps the words that
    fill a share of it. A window that keeps all words has the prompt as it is written, one that keeps none an empty
    text. Words of several tokens stay whole, where the authors' code takes them apart.

    A stage before must have ``remember = true``, and views that show the whole picture.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attention-maps"})
    recalls: ClassVar[bool] = True
    threshold: float = field(default=0.3, validator=share)  # c: share of a window that a word must fill
    opening: float = field(default=1 / 16, validator=share_below_half)  # how far, as a share of the map's longer side
    layers: tuple[int, ...] = field(
        default=(), converter=as_tuple, validator=v.deep_iterable(v.instance_of(int))
    )  # up blocks of a U-Net whose maps are remembered, 0 is the deepest; if empty, all or those that a mask wants
    blocks: tuple[int, ...] = later(
        default=(), converter=as_tuple, validator=v.deep_iterable(v.instance_of(int))
    )  # the same of a transformer, where () is the late half
    halvings: int | None = later(default=None, validator=v.optional(v.ge(0)))  # as the authors' code: maps of encoder
    # and decoder where latents are halved so often, compared and opened at those cells; 2 for SDXL

    def __attrs_post_init__(self) -> None:
        if self.halvings is not None and (self.layers or self.blocks):
            raise ValueError("'halvings' chooses the layers whose maps are remembered; leave 'layers' and 'blocks' out")

    @property
    def request(self) -> AttentionRequest | None:
        """One map a word, of the chosen layers; None leaves the choice to the stages that keep the maps."""
        if not (self.layers or self.blocks or self.halvings is not None):
            return None
        return AttentionRequest(layers=self.layers, blocks=self.blocks, halvings=self.halvings, each=True)

    def texts(
        self,
        step: Step,
        prompt: str,
        negative_prompt: str | None,
        views: Sequence[View],
        canvas: Canvas,
        memory: KeptMaps | None,
    ) -> tuple[str | None, ...]:
        """The kept words of each view in the prompt's order; None where a view keeps all, () if no maps were kept."""
        if memory is None:
            return ()
        import torch

        maps = memory.maps.mean(0)
        if self.halvings is not None:  # they were enlarged cell by cell
            maps = torch.nn.functional.interpolate(maps[None], self._halved(maps.shape), mode="nearest-exact")[0]
        reach = int(self.opening * max(maps.shape[-2:]))
        seen = on_canvas(opened((maps > maps.mean((-2, -1), keepdim=True)).to(maps.dtype), reach), canvas)
        counts = torch.stack([view.read(seen).count_nonzero((-2, -1)) for view in views]).tolist()
        height, width = views[0].shape
        kept = [[count >= self.threshold * height * width for count in each] for each in counts]
        return tuple(None if all(each) else _joined(memory.words, each) for each in kept)

    def _halved(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of the layers' cells from those of the latents."""
        height, width = shape[-2:]
        for _ in range(self.halvings or 0):
            height, width = (height + 1) // 2, (width + 1) // 2
        return height, width


def _joined(words: Sequence[str], kept: Sequence[bool]) -> str:
    """The words that are kept, in their order, with a space between."""
    return " ".join(word for word, is_kept in zip(words, kept, strict=True) if is_kept)


def opened(masks: Tensor, reach: int) -> Tensor:
    """The morphological opening of binary masks by a square of 2 reach + 1 cells; beyond the border counts as 1.

    Eroding and dilating ``reach`` times with a square of three cells is the same.

    Args:
        masks: Float32[Tensor, "words h w"], 0 or 1.
        reach: In cells; 0 changes nothing.
    """
    import torch.nn.functional as F

    side = 2 * reach + 1
    eroded = -F.max_pool2d(-masks, side, 1, reach)
    return F.max_pool2d(eroded, side, 1, reach)


def on_canvas(masks: Tensor, canvas: Canvas) -> Tensor:
    """Maps of the whole picture, resized to the canvas by the nearest cell; padding cells repeat the edge.

    Args:
        masks: Float32[Tensor, "words h w"].
        canvas: Its inner size is the maps', its padding is added below and to the right.

    Returns:
        Float32[Tensor, "words height width"].
    """
    import torch.nn.functional as F

    grown = F.interpolate(masks[None], canvas.inner, mode="nearest-exact")
    return F.pad(grown, (0, canvas.pad_width, 0, canvas.pad_height), mode="replicate")[0]
