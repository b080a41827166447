"""Conditioning tensors: spatial ones are cropped with the view, others are repeated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
import torch.nn.functional as F
from attrs import evolve, field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.core.method.backbone import OpaqueConditioning
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vitrail.backbones.attention.feature_caches import FeatureCaches
    from vitrail.backbones.compiled_code import CompiledCode
    from vitrail.core.geometry.views import Span, View
    from vitrail.core.method.attention_maps import AttentionRequest
    from vitrail.core.method.inputs import Inputs
    from vitrail.core.method.micro_batch import Branch, MicroBatch, TextKey

Layout = Literal["global", "spatial"]


@frozen(kw_only=True, eq=False)
class Given:
    """One conditioning tensor of both branches.

    Attributes:
        name: Name of the argument of the network or its control network.
        layout: ``spatial`` if it has the picture's axes, else ``global``.
        values: Values by branch; global Float32[Tensor, "1 *shape"], spatial Float32[Tensor, "1 channels Height
            Width"].
        scale: Cells of a spatial tensor per latent cell, along one axis, e.g. 8 for a picture.
        texts: Values for rows with texts of their own, by (prompt, negative prompt) and branch; otherwise ``values``.
    """

    name: str
    layout: Layout = "global"
    values: Mapping[Branch, Tensor]
    scale: int = 1
    texts: Mapping[TextKey, Mapping[Branch, Tensor]] = field(factory=dict)

    def rows(self, rows: MicroBatch) -> Tensor:
        """Return one entry per row and picture, in the order of the micro-batch."""
        batch = len(rows.model_input) // len(rows.branches)
        parts = []
        for branch, view, text in zip(rows.branches, rows.views, rows.asked_with, strict=True):
            values = self.texts.get(text, self.values)
            value = values["uncond" if branch == "damped" else branch]
            one = crop(value, view, self.scale) if self.layout == "spatial" else value
            parts.append(one.expand(batch, *one.shape[1:]))
        return torch.cat(parts)


@frozen(kw_only=True)
class CapturedTokens:
    """Positions of the tokens of one text whose attention maps are needed.

    Attributes:
        content: Positions of its content tokens.
        words: Positions of every word's tokens, if maps of each are needed.
    """

    content: tuple[int, ...] = field(converter=as_tuple)
    words: tuple[tuple[int, ...], ...] = field(converter=as_tuple, default=())


@frozen(kw_only=True, eq=False)
class Conditioning(OpaqueConditioning):
    """The whole conditioning of one picture, ready for the network.

    Attributes:
        given: The tensors.
        tokens: Tokens of the prompt whose maps are needed.
        request: Attention maps to capture, if any.
        inputs: What it was made from.
        pack: Further data of the family, e.g. a control network's weights over the steps.
        in_turn: Whether a forward changes the networks, so that threads must take turns.
        kept: The picture's caches, if the network caches earlier forwards.
        texts: Tokens of further texts that rows may have, by (prompt, negative prompt).
        compiled: Compiled code of the network, if the run asks for it.
    """

    given: tuple[Given, ...] = field(converter=as_tuple)
    tokens: CapturedTokens
    request: AttentionRequest | None
    inputs: Inputs
    pack: object = None
    in_turn: bool = False
    kept: FeatureCaches | None = None
    texts: Mapping[TextKey, CapturedTokens] = field(factory=dict)
    compiled: CompiledCode | None = None

    def called(self, network: torch.nn.Module, rows: MicroBatch) -> Callable[..., tuple[Tensor, ...]]:
        """Return what runs the network for some rows: compiled code, unless attention maps of theirs are captured."""
        return network if self.compiled is None or rows.capture else self.compiled.of(network)

    @classmethod
    def of(cls, conditioning: OpaqueConditioning) -> Self:
        """Return a conditioning that a run passes back, checked to be of this class.

        Raises:
            TypeError: If another backbone's class created it.
        """
        if not isinstance(conditioning, cls):
            raise TypeError(
                f"a {type(conditioning).__name__} was made by another backbone; hand back what `condition` gave"
            )
        return conditioning

    def also(self, other: Conditioning) -> Conditioning:
        """Return the conditioning with another one's texts, for rows that have them.

        Raises:
            ConfigError: If its tensors have other shapes.
        """
        prompt, negative = other.inputs.prompt, other.inputs.negative_prompt
        key = (prompt, None if negative == self.inputs.negative_prompt else negative)
        given, theirs = [], {each.name: each.values for each in other.given if each.layout == "global"}
        for own in self.given:
            values = theirs.get(own.name)
            if values is not None and any(own.values[b].shape != values[b].shape for b in own.values):
                raise ConfigError(f"{own.name} of the text {prompt!r} have another shape than those of the prompt")
            given.append(own if values is None else evolve(own, texts={**own.texts, key: values}))
        return evolve(self, given=given, texts={**self.texts, key: other.tokens})

    def tokens_of(self, rows: MicroBatch) -> CapturedTokens:
        """Return the tokens of the text of the rows whose maps are captured; of the prompt if there are none."""
        key = rows.asked_with[rows.capture[0]] if rows.capture else (None, None)
        return self.texts.get(key, self.tokens)

    def both(self, name: str, guided: bool) -> Tensor:
        """Return a tensor as in diffusers' loop: both branches, ``uncond`` first, or without guidance ``cond``."""
        (values,) = (given.values for given in self.given if given.name == name)
        return torch.cat([values["uncond"], values["cond"]]) if guided else values["cond"]

    def rows(self, rows: MicroBatch) -> dict[str, Tensor]:
        """Return every tensor for a micro-batch, by name."""
        return {given.name: given.rows(rows) for given in self.given}


def branches_of(name: str, uncond: Tensor | None, cond: Tensor) -> Given:
    """Return a global tensor from the pair of ``encode_prompt``; without guidance there is no ``uncond``.

    Args:
        name: Name of the network's argument.
        uncond: Of the negative prompt, Float32[Tensor, "1 *shape"], or None.
        cond: Of the prompt, Float32[Tensor, "1 *shape"].

    Raises:
        ConfigError: If their shapes differ, so that they cannot be in one batch.
    """
    if uncond is not None and uncond.shape != cond.shape:
        raise ConfigError(
            f"{name} of the prompt are {tuple(cond.shape)} and those of the negative prompt {tuple(uncond.shape)}; "
            "they must be of one shape, so give embeddings of one length for both"
        )
    values: dict[Branch, Tensor] = {"cond": cond}
    if uncond is not None:
        values["uncond"] = uncond
    return Given(name=name, values=values)


def crop(canvas: Tensor, view: View, scale: int) -> Tensor:
    """Return the part of a spatial tensor that a view sees.

    A window is cropped. A strided view is a small picture of the whole: each of its cells stands for ``stride`` cells
    of the canvas, so ``stride x stride`` cells of the tensor are averaged into one.

    Args:
        canvas: Float32[Tensor, "batch channels scale*Height scale*Width"].
        view: The view, in latent cells.
        scale: Cells of the tensor per latent cell, along one axis.

    Returns:
        Float32[Tensor, "batch channels scale*h scale*w"].
    """
    rows = _cells(view.vertical, scale, canvas.shape[-2])
    cols = _cells(view.horizontal, scale, canvas.shape[-1])
    down, right = view.vertical.step, view.horizontal.step
    cut = canvas.index_select(-2, torch.as_tensor(rows, dtype=torch.int64, device=canvas.device))
    cut = cut.index_select(-1, torch.as_tensor(cols, dtype=torch.int64, device=canvas.device))
    return cut if down == right == 1 else F.avg_pool2d(cut, (down, right))


def _cells(span: Span, scale: int, length: int) -> Sequence[int]:
    """Return the indices of a span's cells on the tensor's axis; beyond its ends the edge is repeated, or it wraps."""
    first, count = span.start * scale, span.count * span.step * scale
    cells = range(first, first + count)
    rolled = cells if span.length is None else [i % (span.length * scale) for i in cells]
    return [min(max(i, 0), length - 1) for i in rolled]
