"""Where a picture of the demo model's world differs from its background, cell by cell.

Backgrounds are drawn, so what one may look like is known: a cell is compared with the cells of freshly drawn pictures
of the same background at the same size, at about the same height. Its distance to the nearest of them says how
unlikely it is that the background alone made it. An object of its background's colours is not seen (a white rabbit
among clouds).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from vitrail.core.method.metric import Shown
from vitrail.core.schedule.streams import Streams

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 8  # pixels of a cell's side: a latent cell of the model
STRIDE = 4  # pixels from one cell to the next
DRAWN = 12  # pictures of a background to compare with
COMPARED = 2048  # of their cells, for each row of cells
BAND = 0.15  # of the height, up and down: horizons lie higher in some pictures than in others
SURE = 0.2  # Euclidean distance of mean colour and deviation in [0, 1] that only an object has
FAIR = 0.12  # distance of a cell that belongs to an object if a neighbour surely does
AT_ONCE = 2**22  # distances


def background_of(prompt: str) -> str | None:
    """The name of the background that a prompt asks for by the model's own phrase; None if it asks for none."""
    from vitrail.demo.backgrounds import BACKGROUNDS

    words = f" {' '.join(prompt.lower().split())} "
    said = [name for name, each in BACKGROUNDS.items() if f" {each.phrase} " in words or f" {each.alone} " in words]
    return max(said, key=lambda name: len(BACKGROUNDS[name].alone), default=None)


def cells(picture: Tensor) -> Tensor:
    """Mean colour and the deviation of brightness of each cell.

    Args:
        picture: Float32[Tensor, "3 Height Width"] in [0, 1].

    Returns:
        Float32[Tensor, "4 rows columns"].
    """
    import torch
    import torch.nn.functional as F

    bright = picture.mean(dim=0, keepdim=True)
    mean, first, second = (F.avg_pool2d(each[None], WINDOW, STRIDE)[0] for each in (picture, bright, bright.square()))
    return torch.cat([mean, (second - first.square()).clamp(min=0).sqrt()])


@functools.lru_cache(maxsize=16)
def drawn_cells(background: str, height: int, width: int) -> Tensor:
    """For each row of cells, what the background looks like about there, Float32[Tensor, "rows compared 4"]."""
    import torch

    from vitrail.demo.backgrounds import BACKGROUNDS

    streams, draw = Streams(0), BACKGROUNDS[background].draw
    generators = [streams.generator("background to compare with", number) for number in range(DRAWN)]
    drawn = torch.stack([cells(draw(height, width, each).clamp(0, 1)) for each in generators])
    _, _, rows, columns = drawn.shape
    chance = streams.generator("cells to compare with")
    shape, band = (rows, COMPARED), round(BAND * rows)

    def below(count: int) -> Tensor:
        return torch.randint(count, shape, generator=chance, dtype=torch.int64, device="cpu")

    row = torch.arange(rows, dtype=torch.int64, device="cpu")[:, None] + below(2 * band + 1) - band
    return drawn.movedim(1, -1)[below(DRAWN), row.clamp(0, rows - 1), below(columns)]


_seen: WeakKeyDictionary[Shown, Tensor | None] = WeakKeyDictionary()


def unlikeness(shown: Shown) -> Tensor | None:
    """How far each cell is from its background's, Float32[Tensor, "rows columns"]; None if the background is unknown.

    Computed once for all metrics of the same picture.
    """
    if shown not in _seen:
        name = background_of(shown.prompt)
        _seen[shown] = None if name is None else _unlikeness(shown.picture.float().cpu(), name)
    return _seen[shown]


def _unlikeness(picture: Tensor, background: str) -> Tensor:
    import torch

    seen = cells(picture).movedim(0, -1)
    known = drawn_cells(background, *picture.shape[-2:])
    rows = max(1, AT_ONCE // (COMPARED * seen.shape[1]))
    pairs = zip(torch.split(seen, rows), torch.split(known, rows), strict=True)
    return torch.cat([torch.cdist(one, other).amin(dim=-1) for one, other in pairs])


def pieces(distance: Tensor) -> list[Tensor]:
    """The connected pieces that differ from the background, the largest first, each Bool[Tensor, "rows columns"].

    A piece is made of cells that fairly differ, side by side or corner to corner, one of which surely does.

    Args:
        distance: From ``unlikeness``.
    """
    import torch

    labels = _labels(distance > FAIR)
    found = [labels == label for label in torch.unique(labels[distance > SURE])]
    return sorted(found, key=lambda piece: -int(piece.sum()))


def _labels(mask: Tensor) -> Tensor:
    """A number for each connected piece, 0 outside, Int64[Tensor, "rows columns"]."""
    import torch
    import torch.nn.functional as F

    numbers = torch.arange(1, mask.numel() + 1, dtype=torch.float64, device=mask.device).view_as(mask)
    labels = numbers * mask
    while True:  # the greatest number of a piece spreads over it
        spread = F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0] * mask
        spread = spread.where(spread == 0, _greatest_of(labels, spread))
        if torch.equal(spread, labels):
            return labels.long()
        labels = spread


def _greatest_of(labels: Tensor, spread: Tensor) -> Tensor:
    """Follow each cell's number to the number that its bearer now has: distances double at every turn."""
    index = (spread.long() - 1).clamp(min=0)
    return spread.maximum(labels.flatten()[index])
