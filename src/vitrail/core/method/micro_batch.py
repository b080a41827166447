"""Input and output of the network: a micro-batch of views, and the attention maps that are needed.

Shape legend: ``views`` views of one group, ``rows`` pairs of (view, CFG branch), ``batch`` pictures, ``channels``
latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple, later

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import Canvas, View
    from vitrail.core.method.attention_maps import KeptMaps

Size = Literal["canvas", "native", "phase"]
SIZES = ("canvas", "native", "phase")
Crop = Literal["view", "none", "padded"]
CROPS = ("view", "none", "padded")


@frozen(kw_only=True)
class SizeConditioning:
    """Micro-conditioning of Stable Diffusion XL; ignored by networks without it.

    Podell et al., 2023, https://arxiv.org/abs/2307.01952, sec. 2.2. Published methods choose these values differently,
    which changes the picture. ``canvas`` is the size of the wanted picture, ``phase`` that of the picture at this phase
    of a cascade, ``native`` that of a training picture. ``crop = "padded"`` places a window as DemoFusion's code does:
    on a canvas with a border as wide as its windows of half overlap may shift, an eighth of a window.
    """

    original: Size = field(default="canvas", validator=v.in_(SIZES))  # size before scaling
    target: Size = field(default="canvas", validator=v.in_(SIZES))  # size as shown
    crop: Crop = field(default="view", validator=v.in_(CROPS))  # crop offset of a view; padded: as in DemoFusion's code
    factor: int = later(default=1, validator=v.ge(1))  # multiplies the original and the target size


TextKey = tuple[str | None, str | None]  # prompt and negative prompt, None where they are the run's
Branch = Literal["uncond", "cond", "damped"]  # damped: as uncond, with the network less rectified


@frozen(eq=False)
class MicroBatch:
    """One batch of rows for the network, in canonical order.

    Attributes:
        model_input: Scaled latents, Float32[Tensor, "rows*batch channels h w"].
        branches: The CFG branch of each row.
        views: The view of each row.
        capture: Indices of the rows whose attention maps are needed.
        texts: Prompt of each row, None for the run's; () if all rows have the run's.
        negatives: Negative prompt of each row, None for the run's; () if all rows have the run's.
        words: Number of words whose maps a captured row returns, besides the mean over the content.
        sizes: Size conditioning; None for the stage's.
    """

    model_input: Tensor
    branches: tuple[Branch, ...] = field(converter=as_tuple)
    views: tuple[View, ...] = field(converter=as_tuple)
    capture: tuple[int, ...] = field(converter=as_tuple, default=())
    texts: tuple[str | None, ...] = field(converter=as_tuple, default=())
    negatives: tuple[str | None, ...] = field(converter=as_tuple, default=())
    words: int = 0
    sizes: SizeConditioning | None = None

    @property
    def asked_with(self) -> tuple[TextKey, ...]:
        """Prompt and negative prompt of each row, (None, None) for the run's."""
        none: tuple[str | None, ...] = (None,) * len(self.views)
        return tuple(zip(self.texts or none, self.negatives or none, strict=True))

    def pick(self, rows: Sequence[int]) -> MicroBatch:
        """Return some of the rows, in the order given."""
        batch = len(self.model_input) // len(self.views)
        entries = self.model_input.view(-1, batch, *self.model_input.shape[1:])
        return evolve(
            self,
            model_input=entries[list(rows)].flatten(0, 1),
            branches=[self.branches[row] for row in rows],
            views=[self.views[row] for row in rows],
            capture=[number for number, row in enumerate(rows) if row in self.capture],
            texts=[self.texts[row] for row in rows] if self.texts else (),
            negatives=[self.negatives[row] for row in rows] if self.negatives else (),
        )

    def cut(self, size: int) -> list[MicroBatch]:
        """Split the rows into parts of at most ``size``, each with its share of ``capture``."""
        batch = len(self.model_input) // len(self.views)
        return [
            evolve(
                self,
                model_input=self.model_input[begin * batch : (begin + size) * batch],
                branches=self.branches[begin : begin + size],
                views=self.views[begin : begin + size],
                capture=[row - begin for row in self.capture if begin <= row < begin + size],
                texts=self.texts[begin : begin + size],
                negatives=self.negatives[begin : begin + size],
            )
            for begin in range(0, len(self.views), size)
        ]


@frozen(eq=False)
class ModelOutput:
    """Output of the network for a micro-batch.

    Attributes:
        model_output: Float32[Tensor, "rows*batch channels h w"].
        attention: Mean map of the content tokens for each captured row, at most 1,
            Float32[Tensor, "batch 1 h w"], or None if no row was captured.
        has_content: False if the prompt has no content token.
        layers: The same map by block, for observers; only on the rank that computed it.
        words: Maps of every word, Float32[Tensor, "batch words h w"], if they were requested.
        memory: Maps kept by earlier stages, for a mask source with ``recalls = True``.
        view: For a mask: the view to mask, the key view or the whole canvas.
        canvas: For a mask: the canvas that the view lies on.
        inner: Height and width in cells of the masked region without padding; None for all of it.
    """

    model_output: Tensor
    attention: Tensor | None = None
    has_content: bool = True
    layers: Mapping[int, Tensor] = field(factory=dict)
    words: Tensor | None = None
    memory: KeptMaps | None = None
    view: View | None = None
    canvas: Canvas | None = None
    inner: tuple[int, int] | None = None

    @classmethod
    def join(cls, parts: Sequence[ModelOutput]) -> ModelOutput:
        """Join the outputs of the parts of one micro-batch, in the order of ``MicroBatch.cut``."""
        import torch

        maps = [part.attention for part in parts if part.attention is not None]
        return cls(
            torch.cat([part.model_output for part in parts]),
            torch.cat(maps) if maps else None,
            all(part.has_content for part in parts),
            next((part.layers for part in parts if part.layers), {}),
            next((part.words for part in parts if part.words is not None), None),
        )
