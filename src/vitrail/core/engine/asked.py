"""Which entries of the network's input are asked with which texts, and how the answers of one entry are mixed.

Most entries, views as a rule, are asked once. Where regions of other prompts lie on a view it is asked once for each of
their texts, and the answers are added up by the texts' shares of every cell. Fusions and guidance see one prediction a
view, as without regions.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from attrs import field, frozen

from vitrail.core.config.fields import as_tuple

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.geometry.views import View


@frozen
class AskedEntry:
    """One entry of the network's input.

    Attributes:
        view: The view that it shows.
        text: Its prompt; None for the run's.
        negative: Its negative prompt; None for the run's.
        is_captured: Whether the attention maps of its conditional row are needed.
        words: Number of words whose maps the captured row returns, besides the mean over the content.
    """

    view: View
    text: str | None = None
    negative: str | None = None
    is_captured: bool = False
    words: int = 0


@frozen
class CanvasPart:
    """The part of the canvas that a question is about.

    Attributes:
        view: The view, which may go beyond the canvas.
        cells: Rows and columns of the canvas that it shows, where they are not those of the view; else None.
    """

    view: View
    cells: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@frozen(eq=False)
class AskedPairs:
    """Pairs of an entry and a text, entry by entry, the run's own text (0) first.

    Attributes:
        pairs: (number of the entry, number of the text).
        shares: Share of each pair's text in the cells of its entry, Float32[Tensor, "pairs 1 #channels h w"] on the
            CPU; None if every entry is asked once.
    """

    pairs: tuple[tuple[int, int], ...] = field(converter=as_tuple)
    shares: Tensor | None = None

    @classmethod
    def once(cls, count: int) -> AskedPairs:
        """Return ``count`` entries that are asked once each, with the run's text."""
        return cls([(entry, 0) for entry in range(count)])

    @classmethod
    def by_share(cls, entries: Tensor, always: bool = False) -> AskedPairs:
        """Return the pairs of every entry with the texts that have a share in it.

        Args:
            entries: Shares of the texts in every entry, Float32[Tensor, "entries texts #channels h w"].
            always: Whether every entry is asked with all texts that have a share in any of them.
        """
        touched = entries.flatten(2).amax(-1) > 0
        chosen: list[list[int]] = (touched.any(0).expand_as(touched) if always else touched).nonzero().tolist()
        if not any(text for _, text in chosen):
            return cls.once(len(entries))
        pairs = [(entry, text) for entry, text in chosen]
        rows, texts = (list(each) for each in zip(*pairs, strict=True))
        return cls(pairs, entries[rows, texts][:, None])

    @property
    def is_plain(self) -> bool:
        """Whether every entry is asked once, with the run's text."""
        return self.shares is None

    def texts_of(self, entry: int) -> list[tuple[int, int]]:
        """Return (number of the pair, number of the text) of an entry."""
        return [(number, text) for number, (own, text) in enumerate(self.pairs) if own == entry]

    def weights(self, entry: int) -> list[Tensor]:
        """Return the share of every text of an entry, the mean over channels, Float32[Tensor, "1 1 h w"] each."""
        assert self.shares is not None
        return [self.shares[number].mean(1, keepdim=True) for number, _ in self.texts_of(entry)]

    def inputs(self, entries: Tensor) -> Tensor:
        """Return the input of every pair, Float32[Tensor, "pairs batch channels h w"], from that of every entry."""
        return entries if self.is_plain else entries[[entry for entry, _ in self.pairs]]

    def mixed(self, rows: Tensor) -> Tensor:
        """Add up the answers of each entry by the shares of its texts; one answer is that entry's, bit for bit.

        Args:
            rows: Float32[Tensor, "pairs branches batch channels h w"].

        Returns:
            Float32[Tensor, "entries branches batch channels h w"].
        """
        import torch

        if self.shares is None:
            return rows
        shares = self.shares.to(rows.device)
        found = []
        for _, group in groupby(range(len(self.pairs)), key=lambda number: self.pairs[number][0]):
            first, *others = group
            total = rows[first]
            if others:
                total = shares[first] * rows[first]
                for number in others:
                    total = total + shares[number] * rows[number]
            found.append(total)
        return torch.stack(found)
