"""Inception v3 as FID uses it: the network of the TensorFlow graph of 2015-12-05, on which published FIDs are computed.

The architecture is that of Szegedy et al. (2015, https://arxiv.org/abs/1512.00567, table 1) with three differences of
that graph: average pooling inside a block excludes the padding from the mean, the last block's pooling takes
maxima, and there are 1008 classes. Modules have the names of the public PyTorch conversion of its weights
(``pt_inception-2015-12-05-6726825d.pth``), so that its state dict loads unchanged.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

SIDE = 299  # pixels: height and width of the input
CLASSES = 1008
EPSILON = 1e-3  # added to variances in batch norm
Pool = Literal["mean", "max", "halve"]


@frozen
class Conv:
    """Specification of a convolution with batch norm and ReLU; padded to keep the size if ``same``, else not padded."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    same: bool = True


@frozen
class Branch:
    """Specification of a branch: optional pooling, a chain of convolutions, then optional parallel ones (``fork``)."""

    convs: tuple[Conv, ...] = ()
    pool: Pool | None = None
    fork: tuple[Conv, ...] = ()


def _chain(prefix: str, *steps: tuple[int, tuple[int, int]]) -> tuple[Conv, ...]:
    return tuple(Conv(f"{prefix}_{number}", *step) for number, step in enumerate(steps, 1))


def _shrinking(name: str, channels: int) -> Conv:
    return Conv(name, channels, (3, 3), stride=2, same=False)


def _pooled(channels: int, pool: Pool = "mean") -> Branch:
    return Branch((Conv("branch_pool", channels),), pool=pool)


def _fine(pooled: int) -> tuple[Branch, ...]:
    """Branches of a block at 35x35 cells (Szegedy et al., figure 5)."""
    return (
        Branch((Conv("branch1x1", 64),)),
        Branch(_chain("branch5x5", (48, (1, 1)), (64, (5, 5)))),
        Branch(_chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))),
        _pooled(pooled),
    )


def _to_middle() -> tuple[Branch, ...]:
    return (
        Branch((_shrinking("branch3x3", 384),)),
        Branch((*_chain("branch3x3dbl", (64, (1, 1)), (96, (3, 3))), _shrinking("branch3x3dbl_3", 96))),
        Branch(pool="halve"),
    )


def _middle(width: int) -> tuple[Branch, ...]:
    """Branches of a block at 17x17 cells (Szegedy et al., figure 6 with n = 7)."""
    row, column, one = (1, 7), (7, 1), (1, 1)
    double = ((width, one), (width, column), (width, row), (width, column), (192, row))
    return (
        Branch((Conv("branch1x1", 192),)),
        Branch(_chain("branch7x7", (width, one), (width, row), (192, column))),
        Branch(_chain("branch7x7dbl", *double)),
        _pooled(192),
    )


def _to_coarse() -> tuple[Branch, ...]:
    seven = _chain("branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
    return (
        Branch((Conv("branch3x3_1", 192), _shrinking("branch3x3_2", 320))),
        Branch((*seven, _shrinking("branch7x7x3_4", 192))),
        Branch(pool="halve"),
    )


def _coarse(pool: Pool) -> tuple[Branch, ...]:
    """Branches of a block at 8x8 cells (Szegedy et al., figure 7)."""

    def fork(name: str) -> tuple[Conv, ...]:
        return (Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1)))

    return (
        Branch((Conv("branch1x1", 320),)),
        Branch((Conv("branch3x3_1", 384),), fork=fork("branch3x3_2")),
        Branch(_chain("branch3x3dbl", (448, (1, 1)), (384, (3, 3))), fork=fork("branch3x3dbl_3")),
        _pooled(192, pool),
    )


STEM = (  # None is a max pooling of stride 2
    Conv("Conv2d_1a_3x3", 32, (3, 3), stride=2, same=False),
    Conv("Conv2d_2a_3x3", 32, (3, 3), same=False),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    None,
    Conv("Conv2d_3b_1x1", 80, same=False),
    Conv("Conv2d_4a_3x3", 192, (3, 3), same=False),
    None,
)
BLOCKS = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": _to_middle(),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": _to_coarse(),
    "Mixed_7b": _coarse("mean"),
    "Mixed_7c": _coarse("max"),
}


class _Layer(nn.Module):
    """Module of one ``Conv``: convolution, batch norm and ReLU."""

    def __init__(self, channels_in: int, conv: Conv) -> None:
        super().__init__()
        padding = (conv.kernel[0] // 2, conv.kernel[1] // 2) if conv.same else (0, 0)
        self.conv = nn.Conv2d(channels_in, conv.channels, conv.kernel, conv.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(conv.channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side, each of its own convolutions."""

    def __init__(self, channels_in: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        self.channels = sum(self._add(branch, channels_in) for branch in branches)

    def _add(self, branch: Branch, channels: int) -> int:
        for conv in branch.convs:
            self.add_module(conv.name, _Layer(channels, conv))
            channels = conv.channels
        for conv in branch.fork:
            self.add_module(conv.name, _Layer(channels, conv))
        return sum(conv.channels for conv in branch.fork) or channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._through(branch, x) for branch in self.branches], dim=1)

    def _through(self, branch: Branch, x: Tensor) -> Tensor:
        x = _pool(x, branch.pool)
        for conv in branch.convs:
            x = self.get_submodule(conv.name)(x)
        if branch.fork:
            return torch.cat([self.get_submodule(conv.name)(x) for conv in branch.fork], dim=1)
        return x


class InceptionNetwork(nn.Module):
    """FID's Inception v3: pictures of any size to 2048 pooled features."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for conv in STEM:
            if conv is not None:
                self.add_module(conv.name, _Layer(channels, conv))
                channels = conv.channels
        for name, branches in BLOCKS.items():
            block = _Block(channels, branches)
            self.add_module(name, block)
            channels = block.channels
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the spatial mean of the last block's output.

        Args:
            pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Returns:
            Float32[Tensor, "batch 2048"].
        """
        x = resized_as_tensorflow_did(255 * pictures, SIDE)
        x = (x - 128) / 128
        for conv in STEM:
            x = _pool(x, "halve") if conv is None else self.get_submodule(conv.name)(x)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Return class logits without the last bias, as in the inception score, Float32[Tensor, "batch 1008"]."""
        return features @ self.fc.weight.T


def resized_as_tensorflow_did(pictures: Tensor, side: int) -> Tensor:
    """Resize bilinearly, sampling at i * in / out, without half-pixel centres or antialiasing.

    This is ``tf.image.resize_bilinear`` of TensorFlow 1, which FID depends on (Parmar et al., 2022,
    https://arxiv.org/abs/2104.11222).

    Args:
        pictures: Float[Tensor, "batch channels Height Width"].
        side: Pixels.

    Returns:
        Float[Tensor, "batch channels side side"].
    """
    for axis in (-1, -2):
        count = pictures.shape[axis]
        place = torch.arange(side, device=pictures.device, dtype=pictures.dtype) * (count / side)
        low = place.floor().long().clamp(max=count - 1)
        high = (low + 1).clamp(max=count - 1)
        weight = (place - low).view(-1, *[1] * (-1 - axis))
        first, second = (pictures.index_select(axis, index) for index in (low, high))
        pictures = first + (second - first) * weight
    return pictures


def _pool(x: Tensor, pool: Pool | None) -> Tensor:
    if pool is None:
        return x
    if pool == "halve":
        return F.max_pool2d(x, 3, stride=2)
    if pool == "max":
        return F.max_pool2d(x, 3, stride=1, padding=1)
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
