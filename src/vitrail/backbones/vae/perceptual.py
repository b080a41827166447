"""Perceptual distance: the difference of a network's features, normalised to unit length at every cell.

LPIPS (Zhang et al., 2018, https://arxiv.org/abs/1801.03924), eq. 1: with features f_l of layer l, divided by their
length over the channels, and weights w_l of the channels,

    d(a, b) = sum_l mean over cells of sum_c w_lc (f_l(a) - f_l(b))_c^2

Without a file the features are those of the judge that ships with the demo model, five layers of a small network for
drawn objects, and w = 1/5, which makes distances about as large as those of LPIPS. For photographs use a file of
LPIPS in its VGG16 form, in float32 or less, with

    features.N.weight, features.N.bias   the convolutions of VGG16 under torchvision's numbers, N in ``lpips.CONVS``
    linL.model.1.weight                  w_L of relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3, (1, channels, 1, 1)

which are the names in the two published weight files together, or with the names of the package ``lpips``, see
``lpips.check_weights``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vitrail.core.config.paths import expanded
from vitrail.core.method.lpips import BLOCKS, check_weights, head_name, names
from vitrail.demo.judge import Judge, JudgeNetwork
from vitrail.errors import ShapeError

LEAST = 16  # pixels of a side, so that one cell is left after four poolings
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # normalisation of colours in [-1, 1], as in LPIPS
TINY = 1e-10  # added to a feature's squared length, which may be 0
FLAT = 0.1  # the same for the judge, whose squared lengths are 5 to 200; flat cells then count less


class JudgeDistance:
    """The distance by the judge's features."""

    def __init__(self, network: JudgeNetwork):
        self._network = network

    def features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return the features of pictures in [-1, 1], Float[Tensor, "batch 3 Height Width"].

        Returns:
            Five layers, each Float[Tensor, "batch channels rows columns"], normalised.
        """
        network = self._network
        first, *stem = network.stem
        hidden = first(pictures.to(network.heads.weight.dtype) / 2)  # the judge takes [0, 1] minus one half
        found = []
        for layer in (*stem, network.trunk, network.features):
            hidden = layer(hidden)
            found.append(normalised(hidden, FLAT))
        return tuple(found)

    def between(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Return the distance of each picture to its counterpart, Float[Tensor, "batch"]."""
        return apart(features, others, [None] * len(features)) / len(features)


class VggDistance:
    """LPIPS with the weights of a file."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self._weights = weights

    def features(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Return the features of pictures in [-1, 1], Float[Tensor, "batch 3 Height Width"].

        Returns:
            Five layers, each Float[Tensor, "batch channels rows columns"], normalised.

        Raises:
            ShapeError: If pictures have less than 16 pixels a side.
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
        """Return the distance of each picture to its counterpart, Float[Tensor, "batch"]."""
        return apart(features, others, [self._weights[head_name(number)] for number in range(len(BLOCKS))])


def normalised(features: Tensor, least: float) -> Tensor:
    """Divide features by their length over the channels; differentiable also where all are 0.

    Args:
        features: Float[Tensor, "batch channels rows columns"].
        least: Added to the squared length.
    """
    return features * (features.square().sum(1, keepdim=True) + least).rsqrt()


def apart(features: Sequence[Tensor], others: Sequence[Tensor], weights: Sequence[Tensor | None]) -> Tensor:
    """Return the sum over layers of the mean weighted squared difference, Float[Tensor, "batch"].

    Args:
        features: Float[Tensor, "batch channels rows columns"] of each layer.
        others: Of the same shapes.
        weights: Float[Tensor, "1 channels 1 1"] of each layer; None for 1.
    """
    total: Tensor | None = None
    for own, other, weight in zip(features, others, weights, strict=True):
        square = (own - other).square()
        layer = (square if weight is None else square * weight).sum(1).mean((-2, -1))
        total = layer if total is None else total + layer
    assert total is not None
    return total


def load_distance(weights: str | None, device: Any = None) -> JudgeDistance | VggDistance:
    """Load the distance of a file of weights, or the judge's if None.

    Raises:
        ModelError: As ``check_weights``.
    """
    with torch.inference_mode(False), torch.no_grad():  # normal tensors, to be used in autograd
        if weights is None:
            return JudgeDistance(Judge.load().network.to(device))
        own, loaded = check_weights(weights), load_file(expanded(weights))
        return VggDistance({name: loaded[own[name]].float().to(device) for name in names()})
