"""How different pictures look: the difference of a network's features, each of unit length at every cell.

LPIPS (Zhang et al., 2018, https://arxiv.org/abs/1801.03924), eq. 1: with features f_l of layer l, divided by their
length over the channels, and weights w_l of the channels,

    d(a, b) = sum_l mean over cells of sum_c w_lc (f_l(a) - f_l(b))_c^2

Without a file the features are those of the judge that ships with the demo model, five layers of a small network for
drawn objects, and w = 1/5, which makes distances about as large as those of LPIPS. For photographs give the file of
LPIPS in its VGG16 form, in float32 or less, with

    features.N.weight, features.N.bias   the convolutions of VGG16 under torchvision's numbers, N in ``CONVS``
    linL.model.1.weight                  w_L of relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, (1, channels, 1, 1)

which are the names of the two published weight files put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vitrail.backbones.demo.judge import Judge, JudgeNetwork
from vitrail.backbones.header import read_header
from vitrail.errors import ModelError, ShapeError

CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # between two poolings
LEAST = 16  # pixels of a side, so that a cell is left after four poolings
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of colours in [-1, 1], as LPIPS was made
TINY = 1e-10  # beside the square of a feature's length, which may be 0
FLAT = 0.1  # the same for the judge, whose features have squares of 5 to 200; so that flat cells count less


class JudgeDistance:
    """By the judge's features."""

    def __init__(self, network: JudgeNetwork):
        self._network = network

    def features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Five layers, each Float[Tensor, "batch channels rows columns"] of unit length."""
        network = self._network
        first, *stem = network.stem
        hidden = first(pictures.to(network.heads.weight.dtype) / 2)  # the judge knows [0, 1] minus one half
        found = []
        for layer in (*stem, network.trunk, network.features):
            hidden = layer(hidden)
            found.append(normalised(hidden, FLAT))
        return tuple(found)

    def between(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """The distance of every picture to its other, Float[Tensor, "batch"]."""
        return apart(features, others, [None] * len(features)) / len(features)


class VggDistance:
    """LPIPS by the weights of a file."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self._weights = weights

    def features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Five layers, each Float[Tensor, "batch channels rows columns"] of unit length.

        Raises:
            ShapeError: If a picture is too small to be looked at.
        """
        if min(pictures.shape[-2:]) < LEAST:
            raise ShapeError(f"LPIPS wants pictures of {LEAST} pixels a side or more, got {tuple(pictures.shape[-2:])}")
        weights = self._weights
        shown = pictures.to(weights["features.0.weight"].dtype)
        shift, scale = (shown.new_tensor(each).view(1, 3, 1, 1) for each in (SHIFT, SCALE))
        hidden, found = (shown - shift) / scale, []
        for number, block in enumerate(BLOCKS):
            hidden = F.max_pool2d(hidden, 2) if number else hidden
            for conv in block:
                name = f"features.{conv}"
                hidden = F.relu(F.conv2d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1))
            found.append(normalised(hidden, TINY))
        return tuple(found)

    def between(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """The distance of every picture to its other, Float[Tensor, "batch"]."""
        return apart(features, others, [self._weights[_head(number)] for number in range(len(BLOCKS))])


def normalised(features: Tensor, least: float) -> Tensor:
    """Features divided by their length over the channels; a derivative exists where all are 0, too.

    Args:
        features: Float[Tensor, "batch channels rows columns"].
        least: Added to the square of the length.
    """
    return features * (features.square().sum(1, keepdim=True) + least).rsqrt()


def apart(features: Sequence[Tensor], others: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
    """The sum over layers of the mean weighted square difference, Float[Tensor, "batch"]."""
    total: Tensor | None = None
    for own, other, weight in zip(features, others, weights, strict=True):
        square = (own - other).square()
        layer = (square if weight is None else square * weight).sum(1).mean((-2, -1))
        total = layer if total is None else total + layer
    assert total is not None
    return total


def load_distance(weights: str | None, device: Any = None) -> JudgeDistance | VggDistance:
    """The distance of a file, or the judge's.

    Raises:
        ModelError: As ``check_weights``.
    """
    with torch.inference_mode(False), torch.no_grad():  # parts of a graph later
        if weights is None:
            return JudgeDistance(Judge.load().network.to(device))
        check_weights(weights)
        loaded = load_file(weights)
        return VggDistance({name: loaded[name].float().to(device) for name in _names()})


def check_weights(weights: str) -> None:
    """Refuse a file of other weights by its header alone; other tensors beside them do not matter.

    Raises:
        ModelError: If the file is missing, broken, or lacks a tensor that fits the others.
    """
    shapes = read_header(Path(weights).expanduser()).shapes
    missing = [name for name in _names() if name not in shapes]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise _refusal(weights, f"it has no {', '.join(missing[:3])}{more}")
    channels = 3
    for number, block in enumerate(BLOCKS):
        for conv in block:
            weight, bias = f"features.{conv}.weight", f"features.{conv}.bias"
            width = shapes[bias][0] if shapes[bias] else 0
            _fit(weights, weight, shapes[weight], (width, channels, 3, 3))
            _fit(weights, bias, shapes[bias], (width,))
            channels = width
        _fit(weights, _head(number), shapes[_head(number)], (1, channels, 1, 1))


def _fit(weights: str, name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise _refusal(weights, f"{name} is {shape} and should be {wanted}")


def _refusal(weights: str, what: str) -> ModelError:
    return ModelError(
        f"{weights} has not the weights of LPIPS in its VGG16 form: {what}; wanted are features.N.weight and .bias "
        f"for N in {', '.join(map(str, CONVS))} and linL.model.1.weight for L in 0 to {len(BLOCKS) - 1}, "
        "or leave `weights` out for the distance that ships inside"
    )


def _head(number: int) -> str:
    return f"lin{number}.model.1.weight"


def _names() -> list[str]:
    convs = [f"features.{conv}.{kind}" for conv in CONVS for kind in ("weight", "bias")]
    return convs + [_head(number) for number in range(len(BLOCKS))]
