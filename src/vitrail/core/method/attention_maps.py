"""Attention maps: requests to the network, and the maps that are kept for later stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple
from vitrail.errors import PredictionError

if TYPE_CHECKING:
    from torch import Tensor

Over = Literal["mean", "max"]
Kind = Literal["text", "cross", "joint"]
NEEDS_OF_KINDS: Mapping[Kind, str] = {  # need implied by a request for maps of a kind
    "text": "attention-maps",
    "cross": "cross-attention-maps",
    "joint": "joint-attention-maps",
}


@frozen
class AttentionRequest:
    """The attention maps that a mask source or a prompting needs; the backbone reduces them to one map per view.

    Attributes:
        layers: Of a U-Net: up blocks that have cross-attention, counted from the deepest, negative ones from the last;
            () for all. A transformer has no use for them.
        skip_words: Words that never count as content.
        kind: ``cross`` for attention from picture to text, ``joint`` for attention of picture and text to each other;
            ``text`` for whichever of the two the network has.
        words: Words and phrases of the prompt; if given, no others count as content.
        over: Whether a cell's value is the mean over the content tokens or their maximum.
        t5: With ``joint``: whether the tokens of the T5 encoder count beside those of the CLIP encoders.
        each: Whether one map per word of the prompt is also needed.
        blocks: Of a transformer: blocks, negative ones counted from the last; () for the later half. A U-Net has no
            use for them.
        halvings: Of a U-Net: in place of ``layers`` all layers of its encoder and decoder whose cells are the latents
            halved so often, as AccDiffusion's code has it; maps of words are enlarged to the nearest cell, so that they
            can be read at those cells again. None for ``layers``.
        skip_missing: Whether ``words`` that a text lacks are passed over: texts besides the prompt have some of them.
    """

    layers: tuple[int, ...] = ()
    skip_words: frozenset[str] = frozenset()
    kind: Kind = "text"
    words: tuple[str, ...] = ()
    over: Over = "mean"
    t5: bool = False
    each: bool = False
    blocks: tuple[int, ...] = ()
    halvings: int | None = None
    skip_missing: bool = False


def kind_of(offers: Iterable[str]) -> Kind:
    """Return the kind of attention whose maps a backbone offers; ``text`` if it does not say which."""
    kinds: tuple[Kind, ...] = ("cross", "joint")
    return next((kind for kind in kinds if NEEDS_OF_KINDS[kind] in offers), "text")


@frozen(eq=False)
class KeptMaps:
    """Attention maps of every word, averaged over the steps of earlier stages.

    Attributes:
        words: Words of the prompt, in their order.
        maps: Mean over the steps so far, Float32[Tensor, "batch words h w"].
        steps: Number of steps in the mean.
        texts: With regions, the number of the text that each word is of; () for words of one text.
        of_regions: With regions, the words of all texts, each map times its text's share of every cell; None without.
    """

    words: tuple[str, ...] = field(converter=as_tuple)
    maps: Tensor
    steps: int = 1
    of_regions: KeptMaps | None = None
    texts: tuple[int, ...] = field(converter=as_tuple, default=())

    def heat(self, chosen: Sequence[int], over: Over) -> Tensor:
        """Return the mean or maximum of some words' maps within each text, summed over texts.

        Args:
            chosen: Numbers of the words.
            over: Mean or maximum over the words of a text.

        Returns:
            Float32[Tensor, "batch 1 h w"].
        """
        texts = self.texts or (0,) * len(self.words)
        total: Tensor | None = None
        for text in dict.fromkeys(texts[number] for number in chosen):
            maps = self.maps[:, [number for number in chosen if texts[number] == text]]
            part = maps.mean(1, keepdim=True) if over == "mean" else maps.amax(1, keepdim=True)
            total = part if total is None else total + part
        assert total is not None
        return total

    @property
    def of_all_texts(self) -> KeptMaps:
        """The words of the prompt and of all regions, where there are any."""
        return self if self.of_regions is None else self.of_regions

    def seen(self, newer: KeptMaps) -> KeptMaps:
        """Return the kept maps with those of one more step in the mean."""
        if (newer.words, newer.texts) != (self.words, self.texts):
            raise PredictionError(
                f"the words whose maps are kept were {', '.join(self.words)}, and at a later step are "
                f"{', '.join(newer.words)}: the key view must meet the same regions at every step of a stage with "
                "'remember = true', as it does with patching = \"whole\""
            )
        mean = self.maps + (newer.maps - self.maps) / (self.steps + 1)
        of_regions = self.of_regions
        if of_regions is not None and newer.of_regions is not None:
            of_regions = of_regions.seen(newer.of_regions)
        return KeptMaps(self.words, mean, self.steps + 1, of_regions, self.texts)
