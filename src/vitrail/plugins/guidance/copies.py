"""Small copies of a canvas: one cell of every 2 x 2 block each, other cells of some blocks from copy to copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from vitrail.core.schedule.streams import Streams


@frozen(eq=False)
class Copies:
    """The cells of a canvas that its small copies have.

    The canvas is brought to twice a copy's sides by the nearest cells, spread evenly, and cut into 2 x 2 blocks.

    Attributes:
        choices: Cell of every block that each copy takes, row-major in the block, Int64[Tensor, "copies h w"].
        rows: Row of the canvas for each row of twice a copy's height, Int64[Tensor, "2*h"].
        cols: The same for columns, Int64[Tensor, "2*w"].
        size: Height and width of the canvas.
    """

    choices: Tensor
    rows: Tensor
    cols: Tensor
    size: tuple[int, int]

    @classmethod
    def drawn(
        cls, size: tuple[int, int], shape: tuple[int, int], count: int, share: float, streams: Streams, index: int
    ) -> Copies:
        """Draw the cells of some copies.

        Args:
            size: Height and width of the canvas.
            shape: Height and width of a copy.
            count: Number of copies.
            share: Of the blocks of which a further copy takes a cell that none had before; any, if all four were.
            streams: The run's random streams.
            index: Keys the draw.
        """
        import torch

        rows, cols = (_nearest(2 * small, large) for small, large in zip(shape, size, strict=True))
        draws = streams.uniform((count - 1, 5, *shape), "copies", index)
        chosen = torch.zeros(shape, dtype=torch.int64, device="cpu")
        used = torch.zeros((4, *shape), dtype=torch.float32, device="cpu").scatter_(0, chosen[None], 1.0)
        choices = [chosen]
        for draw in draws:
            another = (draw[:4] + used).argmin(0)  # unused cells first
            chosen = torch.where(draw[4] < share, another, chosen)
            used = used.scatter(0, chosen[None], 1.0)
            choices.append(chosen)
        return cls(torch.stack(choices), rows, cols, size)

    @property
    def steps(self) -> tuple[int, int]:
        """Cells of the canvas to one of a copy, rounded down, at least 1."""
        height, width = self.choices.shape[-2:]
        return max(1, self.size[0] // height), max(1, self.size[1] // width)

    def cells_around(self, shape: tuple[int, int], before: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows and columns of the canvas that a copy shows, that of the edge where it is filled up.

        Args:
            shape: Height and width of what the network sees.
            before: Cells above and to the left that fill it up.
        """
        every = (self.rows[::2].tolist(), self.cols[::2].tolist())
        rows, cols = (
            tuple(own[min(max(i - first, 0), len(own) - 1)] for i in range(length))
            for own, length, first in zip(every, shape, before, strict=True)
        )
        return rows, cols

    def read(self, canvas: Tensor) -> Tensor:
        """Return every copy of a canvas, Float32[Tensor, "copies batch channels h w"]."""
        import torch

        height, width = self.choices.shape[-2:]
        down = torch.arange(height, dtype=torch.int64, device="cpu")[:, None]
        right = torch.arange(width, dtype=torch.int64, device="cpu")
        rows = self.rows[2 * down + self.choices // 2].to(canvas.device)
        cols = self.cols[2 * right + self.choices % 2].to(canvas.device)
        return torch.stack([canvas[..., y, x] for y, x in zip(rows, cols, strict=True)])

    def spread(self, small: Tensor) -> Tensor:
        """Return the canvas of what was found for the copies, Float32[Tensor, "batch channels height width"].

        A cell has what the latest copy with it has; one that no copy had has its block's in the last copy.

        Args:
            small: Float32[Tensor, "copies batch channels h w"].
        """
        batch, channels, height, width = small.shape[1:]
        blocks = small[-1][..., None].expand(*small.shape[1:], 4).clone()
        for own, choice in zip(small, self.choices.to(small.device), strict=True):
            place = choice[..., None].expand(*own.shape, 1)
            blocks.scatter_(-1, place, own[..., None])
        fine = blocks.reshape(batch, channels, height, width, 2, 2).transpose(-3, -2)
        return self._back(fine.reshape(batch, channels, 2 * height, 2 * width))

    def enlarged(self, small: Tensor) -> Tensor:
        """Return a copy enlarged to the canvas by the nearest cells, Float32[Tensor, "batch channels height width"]."""
        return self._back(small.repeat_interleave(2, -2).repeat_interleave(2, -1))

    def _back(self, fine: Tensor) -> Tensor:
        """Bring values of twice a copy's sides back to the canvas."""
        height, width = fine.shape[-2:]
        rows, cols = _nearest(self.size[0], height), _nearest(self.size[1], width)
        return fine.index_select(-2, rows.to(fine.device)).index_select(-1, cols.to(fine.device))


def _nearest(count: int, length: int) -> Tensor:
    """Return the nearest of ``length`` cells for ``count`` cells over the same extent, Int64[Tensor, "count"]."""
    import torch

    places = torch.arange(count, dtype=torch.int64, device="cpu")
    return (2 * places + 1) * length // (2 * count)
