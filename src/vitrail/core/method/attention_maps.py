"""Attention maps: requests to the network, and the maps that are kept for later stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

Over = Literal["mean", "max"]


@frozen
class AttentionRequest:
    """The attention maps that a mask source or a prompting needs; the backbone reduces them to one map per view.

    Attributes:
        layers: Blocks of the network. ``cross``: up blocks that have cross-attention, counted from the deepest, empty
            for all; ``joint``: blocks of a transformer, empty for the later half. Negative ones count from the last.
        skip_words: Words that never count as content.
        kind: ``cross`` for attention from picture to text, ``joint`` for attention of picture and text to each other.
        words: Words and phrases of the prompt; if given, no others count as content.
        over: Whether a cell's value is the mean over the content tokens or their maximum.
        t5: With ``joint``: whether the tokens of the T5 encoder count beside those of the CLIP encoders.
        each: Whether one map per word of the prompt is also needed; ``cross`` only.
    """

    layers: tuple[int, ...] = ()
    skip_words: frozenset[str] = frozenset()
    kind: Literal["cross", "joint"] = "cross"
    words: tuple[str, ...] = ()
    over: Over = "mean"
    t5: bool = False
    each: bool = False


@frozen(eq=False)
class KeptMaps:
    """Attention maps of every word, averaged over the steps of earlier stages.

    Attributes:
        words: Words of the prompt, in their order.
        maps: Mean over the steps so far, Float32[Tensor, "batch words h w"].
        steps: Number of steps in the mean.
    """

    words: tuple[str, ...] = field(converter=as_tuple)
    maps: Tensor
    steps: int = 1

    def seen(self, maps: Tensor) -> KeptMaps:
        """Return the kept maps with those of one more step, Float32[Tensor, "batch words h w"], in the mean."""
        mean = self.maps + (maps - self.maps) / (self.steps + 1)
        return KeptMaps(self.words, mean, self.steps + 1)
