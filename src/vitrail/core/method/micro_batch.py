"""What goes into the network and comes out of it: a micro-batch of views, and the attention maps that are wanted.

Shape legend: ``views`` views of one family, ``rows`` pairs of (view, CFG branch), ``batch`` pictures,
``channels`` latent channels, ``height width`` latent cells of the canvas, ``h w`` of a view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import evolve, field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple

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
    """Micro-conditioning of Stable Diffusion XL; a network without it is told nothing.

    Podell et al., 2023, https://arxiv.org/abs/2307.01952, sec. 2.2. Published methods differ here, and it
    shows in the picture. ``canvas`` is the wanted picture's size, ``phase`` that of the phase, ``native`` a training
    picture's. With ``crop = "padded"`` a window lies where the authors of DemoFusion say it lies: on a canvas with a
    border as wide as their windows of half overlap may move, an eighth of a window.
    """

    original: Size = field(default="canvas", validator=v.in_(SIZES))  # before scaling
    target: Size = field(default="canvas", validator=v.in_(SIZES))  # as it is shown
    crop: Crop = field(default="view", validator=v.in_(CROPS))  # where a window lies; padded: as DemoFusion's code says


Branch = Literal["uncond", "cond", "damped"]  # damped: as uncond, in a network that is rectified less


@frozen(eq=False)
class MicroBatch:
    """One micro-batch for the network, in canonical order.

    Attributes:
        model_input: Scaled latents, Float32[Tensor, "rows*batch channels h w"].
        branches: The CFG branch of each row.
        views: The view of each row.
        capture: Indices of the rows whose attention maps are wanted.
        texts: The prompt of each row; None for the run's, () for the run's in all.
        words: How many words' maps a captured row gives besides the mean of the content's.
        sizes: What the network is told about sizes; the stage's if None.
    """

    model_input: Tensor
    branches: tuple[Branch, ...] = field(converter=as_tuple)
    views: tuple[View, ...] = field(converter=as_tuple)
    capture: tuple[int, ...] = field(converter=as_tuple, default=())
    texts: tuple[str | None, ...] = field(converter=as_tuple, default=())
    words: int = 0
    sizes: SizeConditioning | None = None

    def pick(self, rows: Sequence[int]) -> MicroBatch:
        """Some of the rows, in the order given."""
        batch = len(self.model_input) // len(self.views)
        entries = self.model_input.view(-1, batch, *self.model_input.shape[1:])
        return evolve(
            self,
            model_input=entries[list(rows)].flatten(0, 1),
            branches=[self.branches[row] for row in rows],
            views=[self.views[row] for row in rows],
            capture=[number for number, row in enumerate(rows) if row in self.capture],
            texts=[self.texts[row] for row in rows] if self.texts else (),
        )

    def cut(self, size: int) -> list[MicroBatch]:
        """The same rows in parts of at most ``size``, each with its share of ``capture``."""
        batch = len(self.model_input) // len(self.views)
        return [
            evolve(
                self,
                model_input=self.model_input[begin * batch : (begin + size) * batch],
                branches=self.branches[begin : begin + size],
                views=self.views[begin : begin + size],
                capture=[row - begin for row in self.capture if begin <= row < begin + size],
                texts=self.texts[begin : begin + size],
            )
            for begin in range(0, len(self.views), size)
        ]


@frozen(eq=False)
class ModelOutput:
    """What the network said of a micro-batch.

    Attributes:
        model_output: Float32[Tensor, "rows*batch channels h w"].
        attention: Mean map of the content tokens for each captured row, at most 1,
            Float32[Tensor, "batch 1 h w"], or None if no row was captured.
        has_content: False if the prompt has no content token to look at.
        layers: The same map by block, for whoever looks at them; on the rank that captured.
        words: Maps of every word, Float32[Tensor, "batch words h w"], if they were wanted.
        memory: What earlier stages saw, for a mask source that says ``recalls``.
        view: For a mask: what it is wanted of, the key view or the whole canvas.
        canvas: For a mask: on which the view lies.
        inner: Height and width in cells of what is masked, without its padding; all of it if None.
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
        """What the parts of one micro-batch say together, in the order of ``MicroBatch.cut``."""
        import torch

        maps = [part.attention for part in parts if part.attention is not None]
        return cls(
            torch.cat([part.model_output for part in parts]),
            torch.cat(maps) if maps else None,
            all(part.has_content for part in parts),
            next((part.layers for part in parts if part.layers), {}),
            next((part.words for part in parts if part.words is not None), None),
        )
