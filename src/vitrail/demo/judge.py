"""The judge: a small detector that counts and classifies the demo model's objects in a picture of any size.

The network is trained on objects in one band of pixel sizes; an image pyramid scales every object into that
band at two or three levels. A detection's score is the mean of its two best levels, since parts of an object are
mistaken for another object at a single level only; non-maximum suppression across levels and classes leaves one
detection per object. After "Objects as Points", https://arxiv.org/abs/1904.07850.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from attrs import field, frozen
from safetensors.torch import load_file
from torch import Tensor, nn

from vitrail.errors import ModelError, ShapeError

WEIGHTS = Path(__file__).parent / "judge"
STRIDE = 8  # pixels per cell of the heat map
PAD = 32  # pixels of grey around each level, so that objects at the border have surroundings
STEP = math.sqrt(2)  # ratio of the scales of two adjacent pyramid levels
CANDIDATE = 0.1  # minimum score at one level
OVERVIEW = 64  # pixels: shorter side of the whole picture in ``features``


@frozen(kw_only=True)
class Detection:
    """One detected object; lengths are in pixels of the picture."""

    name: str
    score: float
    size: float
    center_y: float
    center_x: float


@frozen(kw_only=True)
class JudgeConfig:
    """Settings of the judge, saved as ``config.json`` beside the weights."""

    classes: tuple[str, ...] = field(converter=tuple)
    width: int = 96  # channels
    num_blocks: int = 4
    num_features: int = 128
    band_low: float = 20.0  # pixels: smallest object size the network is trained on
    band_high: float = 48.0
    top_scale: float = 1.75  # scale of the finest level, so that the smallest objects reach the band
    largest: float = 1.8  # object size over the shorter side that the coarsest level still scales into the band
    threshold: float = 0.4  # minimum score after combining levels


class Heads(NamedTuple):
    """Output of the network for each cell of ``STRIDE`` pixels.

    Attributes:
        heat: Class logits, Float[Tensor, "batch classes rows columns"].
        log_size: Logarithm of object size over the band's geometric mean, Float[Tensor, "batch rows columns"].
        offset: Vector (y, x) from the cell's centre to the object's, in cells, Float[Tensor, "batch 2 rows columns"].
        features: Penultimate features, Float[Tensor, "batch features rows columns"].
    """

    heat: Tensor
    log_size: Tensor
    offset: Tensor
    features: Tensor


def _conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class JudgeNetwork(nn.Module):
    """The fully convolutional detector at one scale; it subtracts 0.5 from pictures in [0, 1]."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        width = config.width
        self.stem = nn.Sequential(
            _conv(3, width // 4, stride=2),
            _conv(width // 4, width // 2, stride=2),
            _Residual(width // 2),
            _conv(width // 2, width, stride=2),
        )
        self.trunk = nn.Sequential(*(_Residual(width) for _ in range(config.num_blocks)))
        self.features = _conv(width, config.num_features)
        self.heads = nn.Conv2d(config.num_features, len(config.classes) + 3, 1)
        rare = self.heads.weight.new_tensor([-4.0] * len(config.classes) + [0.0] * 3)  # prior: few cells hold an object
        self.heads.register_parameter("bias", nn.Parameter(rare))

    def forward(self, pictures: Tensor) -> Heads:
        """Run the network on pictures, Float[Tensor, "batch 3 Height Width"] in [0, 1], sides multiples of 8."""
        features = self.features(self.trunk(self.stem(pictures - 0.5)))
        out = self.heads(features)
        return Heads(out[:, :-3], out[:, -3], out[:, -2:], features)


@frozen(eq=False)
class Judge:
    """Detector of the demo model's objects over an image pyramid.

    Attributes:
        config: Settings as saved with the weights.
        network: The detector, on the device of the pictures.
    """

    config: JudgeConfig
    network: JudgeNetwork

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> "Judge":
        """Load ``config.json`` and ``judge.safetensors`` to the CPU; half-precision weights become float32.

        Raises:
            ModelError: If a file is missing.
        """
        for name in ("config.json", "judge.safetensors"):
            if not (folder / name).exists():
                raise ModelError(
                    f"cannot load the judge: {folder / name} is missing; train it by `python -m training judge`"
                )
        config = JudgeConfig(**json.loads((folder / "config.json").read_text()))
        with torch.device("meta"):  # skip random initialisation, the weights are assigned below
            network = JudgeNetwork(config).eval()
        weights = load_file(folder / "judge.safetensors", device="cpu")
        single = {name: each.float() if each.is_floating_point() else each for name, each in weights.items()}
        network.load_state_dict(single, assign=True)
        return cls(config, network.requires_grad_(False))

    @torch.no_grad()
    def detect(self, picture: Tensor) -> tuple[Detection, ...]:
        """Detect the objects of one picture, in descending order of score.

        Args:
            picture: Float32[Tensor, "3 Height Width"] in [0, 1].

        Raises:
            ShapeError: If the picture has another shape.
        """
        if picture.ndim != 3 or picture.shape[0] != 3:
            raise ShapeError(f"the judge expects a picture of shape (3, Height, Width), got {tuple(picture.shape)}")
        scales = self._scales(picture)
        found = torch.cat([self._look(picture, scale) for scale in scales]).cpu()
        found[:, 1] = self._supported(found, scales)
        found = found[found[:, 1] > self.config.threshold]
        found = found[found[:, 1].argsort(descending=True), :5]
        kept = found[keep_best(*found[:, 1:].unbind(1))]
        names = self.config.classes
        return tuple(
            Detection(name=names[int(name)], score=score, size=size, center_y=y, center_x=x)
            for name, score, size, y, x in kept.tolist()
        )

    def features(self, pictures: Tensor) -> Tensor:
        """Return pooled penultimate features at two scales: shorter side of ``OVERVIEW`` pixels, then full size.

        Args:
            pictures: Float32[Tensor, "batch 3 Height Width"] in [0, 1].

        Returns:
            Float32[Tensor, "batch dim"], where dim is twice the config's ``num_features``.
        """
        scale = OVERVIEW / min(pictures.shape[-2:])
        levels = [_resized(pictures, scale), pictures]
        return torch.cat([self.network(_padded(level)).features.mean(dim=(2, 3)) for level in levels], dim=1)

    def _scales(self, picture: Tensor) -> list[float]:
        coarsest = self.config.band_high / (self.config.largest * min(picture.shape[-2:]))
        count = math.ceil(math.log(self.config.top_scale / coarsest, STEP)) + 2  # two levels for the largest object
        return [self.config.top_scale / STEP**level for level in range(max(count, 1))]

    def _look(self, picture: Tensor, scale: float) -> Tensor:
        """Candidates at one level, Float32[Tensor, "found 6"]: class, score, size, center y, center x, scale."""
        level = _resized(picture[None], scale)
        heat, log_size, offset, _ = self.network(_padded(level))
        score, name = heat[0].sigmoid().max(dim=0)
        peaks = (score == F.max_pool2d(score[None], 3, 1, 1)[0]) & (score > CANDIDATE)
        row, column = peaks.nonzero(as_tuple=True)
        size = log_size[0, row, column].exp() * math.sqrt(self.config.band_low * self.config.band_high)
        ratio = picture.new_tensor(level.shape[-2:]) / picture.new_tensor(picture.shape[-2:])
        cells = torch.stack([row, column], dim=1).to(offset.dtype) + 0.5 + offset[0, :, row, column].T
        center = (cells * STRIDE - PAD) / ratio
        seen = (size > 0.85 * self.config.band_low) & (size < 1.2 * self.config.band_high)
        inside = ((center > 0) & (center < picture.new_tensor(picture.shape[-2:]))).all(dim=1)
        true_size = size / ratio.prod().sqrt()
        columns = (name[row, column], score[row, column], true_size, *center.T, torch.full_like(size, scale))
        return torch.stack(columns, dim=1)[seen & inside]

    def _supported(self, found: Tensor, scales: list[float]) -> Tensor:
        """Mean of a candidate's score and the best score of the same object at another level, Float32[Tensor, "found"].

        The score of an object that is in the band at one level only is unchanged.
        """
        name, score, size, y, x, level = found.unbind(1)
        near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) < 0.4 * size[:, None]
        alike = (size[:, None] / size).log().abs() < 0.5
        same = near & alike & (name[:, None] == name) & (level[:, None] != level)
        second = (score * same).amax(dim=1) if len(found) else score
        shown = size[:, None] * size.new_tensor(scales)
        levels = ((shown > 0.9 * self.config.band_low) & (shown < self.config.band_high)).sum(dim=1)
        return torch.where(levels > 1, (score + second) / 2, score)


def keep_best(score: Tensor, size: Tensor, center_y: Tensor, center_x: Tensor) -> list[int]:
    """Return the indices that survive non-maximum suppression across levels and classes.

    Two detections clash if their boxes' intersection over union exceeds 0.3, or if the centre of one lies in the
    other's box; the one with the higher score is kept. Drawn objects never overlap so much, but a part of an object,
    such as the tip of an ear, may be detected as a small object.

    Args:
        score: Scores in descending order, Float[Tensor, "found"].
        size: Side of each box in pixels, Float[Tensor, "found"].
        center_y: Rows of the centres in pixels, Float[Tensor, "found"].
        center_x: Columns of the centres in pixels, Float[Tensor, "found"].
    """
    gap_y, gap_x = ((c[:, None] - c[None]).abs() for c in (center_y, center_x))
    half = (size[:, None] + size[None]) / 2
    smaller, larger = torch.minimum(size[:, None], size[None]), torch.maximum(size[:, None], size[None])
    shared = torch.minimum(half - gap_y, smaller).clamp(min=0) * torch.minimum(half - gap_x, smaller).clamp(min=0)
    overlap = shared / (smaller.square() + larger.square() - shared)
    clash = (overlap > 0.3) | (torch.maximum(gap_y, gap_x) < 0.5 * larger)
    kept: list[int] = []
    for index in range(len(score)):
        if not clash[index, kept].any():
            kept.append(index)
    return kept


def _resized(pictures: Tensor, scale: float) -> Tensor:
    size = [max(STRIDE, round(side * scale)) for side in pictures.shape[-2:]]
    return F.interpolate(pictures, size=size, mode="bilinear", antialias=True)


def _padded(pictures: Tensor) -> Tensor:
    """Pad with grey on all sides, to sides that are multiples of ``STRIDE``."""
    bottom, right = (PAD + -side % STRIDE for side in pictures.shape[-2:])
    return F.pad(pictures, (PAD, right, PAD, bottom), value=0.5)
