"""Attention maps of one view that is asked with several texts, joined by the texts' shares of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve

from vitrail.core.method.attention_maps import KeptMaps

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.method.micro_batch import ModelOutput


def joined(captured: Sequence[ModelOutput], weights: Sequence[Tensor]) -> ModelOutput:
    """Return the first output with the sum of all maps, each times the share of its text.

    A text without content words adds nothing.

    Args:
        captured: One output for every text of the view.
        weights: Shares of the texts, Float32[Tensor, "1 1 h w"] each.
    """
    pairs = [(w, each.attention) for w, each in zip(weights, captured, strict=True) if each.attention is not None]
    total: Tensor | None = None
    for weight, attention in pairs:
        part = weight.to(attention.device) * attention
        total = part if total is None else total + part
    has_content = any(each.has_content for each in captured)
    return evolve(captured[0], attention=total, has_content=has_content)


def kept_maps(
    captured: Sequence[ModelOutput],
    words: Sequence[tuple[str, ...]],
    own: int | None,
    weights: Sequence[Tensor] | None,
    inner: tuple[int, int],
) -> KeptMaps | None:
    """Return the maps of every word of a view's texts; None if none has a word.

    Args:
        captured: One output for every text of the view.
        words: Words of these texts.
        own: Which of them is the run's prompt; None if the view is not asked with it.
        weights: Shares of the texts, Float32[Tensor, "1 1 h w"] each; None without regions.
        inner: Height and width of the part of the view that is no padding, latent cells.
    """
    import torch

    every = [None if each.words is None else each.words[..., : inner[0], : inner[1]].contiguous() for each in captured]
    known = [(number, maps) for number, maps in enumerate(every) if maps is not None]
    if not known:
        return None
    empty = known[0][1][:, :0]
    main = KeptMaps((), empty)
    if own is not None and every[own] is not None:
        main = KeptMaps(words[own], dict(known)[own])
    if weights is None:
        return main
    scaled = [weights[number].to(maps.device)[..., : inner[0], : inner[1]] * maps for number, maps in known]
    named = [word for number, _ in known for word in words[number]]
    texts = [number for number, _ in known for _ in words[number]]
    return evolve(main, of_regions=KeptMaps(named, torch.cat(scaled, 1), texts=texts))
