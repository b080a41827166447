"""Contact sheets of pictures as PNG files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def write_sheet(pictures: Tensor, columns: int, file: Path) -> None:
    """Write pictures in a grid, row by row, with white borders of two pixels.

    Args:
        pictures: Float32[Tensor, "count 3 side side"] in [0, 1].
        columns: Pictures per row.
        file: The PNG file; its folder is created.
    """
    padded = F.pad(pictures, (2, 2, 2, 2), value=1.0)
    padded = torch.cat([padded, torch.ones(-len(padded) % columns, *padded.shape[1:])])
    rows = [torch.cat(list(row), dim=2) for row in padded.split(columns)]
    page = (torch.cat(rows, dim=1) * 255).round().byte().permute(1, 2, 0).numpy()
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(page).save(file)
