"""Attention maps: which are wanted of a network, and those that are kept for later stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

Over = Literal["mean", "max"]


@frozen
class AttentionRequest:
    """Which attention maps a mask source wants; the backbone reduces them to one map a view.

    Attributes:
        layers: Blocks of the network. ``cross``: up blocks that have cross-attention, counted from the deepest,
            empty for all; ``joint``: blocks of a transformer, empty for the late half. Negative ones count from
            the last.
        skip_words: Words that never count as content.
        kind: Attention to text only, or of picture and text to each other.
        words: Words and phrases of the prompt; if there are any, no others count as content.
        over: Whether the mean of the content tokens counts, or at each cell the largest.
        t5: With ``joint``: whether the tokens of the T5 encoder count beside those of the CLIP encoders.
        each: Whether a map of every word of the prompt is wanted besides; ``cross`` only.
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
    """What earlier stages saw in their attention, word by word.

    Attributes:
        words: Of the prompt, in their order.
        maps: Mean over the steps so far, Float32[Tensor, "batch words h w"].
        steps: How many.
    """

    words: tuple[str, ...] = field(converter=as_tuple)
    maps: Tensor
    steps: int = 1

    def seen(self, maps: Tensor) -> KeptMaps:
        """With the maps of one more step."""
        mean = self.maps + (maps - self.maps) / (self.steps + 1)
        return KeptMaps(self.words, mean, self.steps + 1)
