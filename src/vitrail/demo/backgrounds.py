"""Procedural backgrounds; their texture has a fixed scale in pixels, so it is equally fine at every picture size."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Generator, Tensor


@frozen
class Background:
    """A background: its drawing function and its phrases in captions.

    Attributes:
        draw: Height and width in pixels and a CPU generator to Float32[Tensor, "3 height width"].
        phrase: The phrase after an object's name, e.g. "on a beach".
        alone: The caption of the background without objects.
    """

    draw: Callable[[int, int, Generator], Tensor]  # height, width, generator -> Float32["3 height width"]
    phrase: str  # after an object's name: "on a beach"
    alone: str  # the caption of the bare background


def _uniform(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")


def _below_count(count: int, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw uniform integers in [0, count), Int64[Tensor, "*shape"]."""
    return torch.randint(count, shape, generator=generator, dtype=torch.int64, device="cpu")


def _numbers(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int64, device="cpu")


def _noise(height: int, width: int, scale_y: float, scale_x: float, generator: Generator) -> Tensor:
    """Smooth noise in about [-1, 1] with features of the given size in pixels, Float32[Tensor, "1 height width"]."""
    grid = _uniform((1, 1, math.ceil(height / scale_y) + 3, math.ceil(width / scale_x) + 3), generator)
    size = (round(grid.shape[2] * scale_y), round(grid.shape[3] * scale_x))
    large = F.interpolate(grid * 2 - 1, size=size, mode="bicubic", align_corners=False)
    return large[0, :, -height:, -width:]


def _color(*rgb: int) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32, device="cpu").view(3, 1, 1) / 255


def _mix(low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    return low + (high - low) * weight.clamp(0, 1)


def _below(height: int, edge: float) -> Tensor:
    """Mask of 1 below a horizontal edge at a fraction of the height and 0 above, with one pixel of transition."""
    rows = torch.arange(height, dtype=torch.float32, device="cpu").view(1, -1, 1)
    return (rows - edge * height + 0.5).clamp(0, 1)


def _ramp(height: int) -> Tensor:
    return torch.linspace(0, 1, height, dtype=torch.float32, device="cpu").view(1, -1, 1)


def _edge(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * _uniform((), generator).item()


def _sky(height: int, width: int, generator: Generator) -> Tensor:
    clouds = _noise(height, width, 18, 40, generator) + 0.5 * _noise(height, width, 8, 16, generator)
    return _mix(_mix(_color(72, 145, 220), _color(165, 212, 245), _ramp(height)), _color(255, 255, 255), clouds - 0.45)


def _pale_sky(height: int, width: int, generator: Generator) -> Tensor:
    haze = 0.03 * _noise(height, width, 14, 40, generator)
    return _mix(_color(125, 182, 232), _color(212, 232, 247), _ramp(height) * 1.6) + haze


def _meadow(height: int, width: int, generator: Generator) -> Tensor:
    blades = _noise(height, width, 7, 1.6, generator) + 0.6 * _noise(height, width, 16, 9, generator)
    grass = _mix(_color(46, 118, 38), _color(132, 190, 66), 0.5 + 0.45 * blades)
    return _mix(_pale_sky(height, width, generator), grass, _below(height, _edge(generator, 0.38, 0.52)))


def _beach(height: int, width: int, generator: Generator) -> Tensor:
    waves = _noise(height, width, 2.5, 16, generator)
    sea = _mix(_color(24, 110, 168), _color(92, 190, 208), 0.5 + 0.5 * waves)
    grain = _noise(height, width, 1.3, 1.3, generator) + 0.5 * _noise(height, width, 10, 22, generator)
    sand = _mix(_color(214, 180, 124), _color(246, 224, 172), 0.5 + 0.4 * grain)
    shore = _edge(generator, 0.5, 0.62)
    over = _mix(_pale_sky(height, width, generator), sea, _below(height, shore - 0.18))
    return _mix(over, sand, _below(height, shore))


def _night(height: int, width: int, generator: Generator) -> Tensor:
    glow = 0.5 * _noise(height, width, 30, 45, generator)
    dark = _mix(_color(8, 10, 38), _color(40, 34, 92), _ramp(height) * 0.7 + 0.25 * glow)
    draw = _uniform((2, height, width), generator)
    stars = torch.where(draw[0] < 1 / 160, 0.35 + 0.65 * draw[1], draw.new_zeros(()))
    kernel = draw.new_tensor([[0.1, 0.35, 0.1], [0.35, 1.0, 0.35], [0.1, 0.35, 0.1]])
    light = F.conv2d(stars[None, None], kernel[None, None], padding=1)[0]
    return _mix(dark, _color(255, 250, 225), light)


def _snow(height: int, width: int, generator: Generator) -> Tensor:
    drift = _noise(height, width, 8, 34, generator) + 0.35 * _noise(height, width, 1.5, 1.5, generator)
    snow = _mix(_color(202, 216, 236), _color(252, 253, 255), 0.6 + 0.5 * drift)
    return _mix(_pale_sky(height, width, generator), snow, _below(height, _edge(generator, 0.36, 0.5)))


def _bricks(height: int, width: int, generator: Generator) -> Tensor:
    brick_h, brick_w = 9, 20  # pixels
    offset = _below_count(brick_w, (2,), generator)
    ys = _numbers(height) + int(offset[0])
    row = ys // brick_h
    xs = _numbers(width)[None] + int(offset[1]) + (row[:, None] % 2) * (brick_w // 2)
    column = xs // brick_w
    tones = _uniform((int(row.max()) + 1, int(column.max()) + 1), generator)
    tone = tones[row[:, None].expand_as(column), column][None] + 0.25 * _noise(height, width, 1.5, 2, generator)
    wall = _mix(_color(140, 62, 46), _color(194, 104, 76), tone)
    mortar = ((ys % brick_h < 2)[:, None] | (xs % brick_w < 2))[None].float()
    return _mix(wall, _color(206, 198, 188), mortar)


def _wood(height: int, width: int, generator: Generator) -> Tensor:
    plank = 26  # pixels
    offset = int(_below_count(plank, (), generator))
    ys = _numbers(height) + offset
    tones = _uniform((int(ys.max()) // plank + 1,), generator)[ys // plank].view(1, -1, 1)
    grain = _noise(height, width, 1.6, 26, generator) + 0.7 * _noise(height, width, 5, 60, generator)
    boards = _mix(_color(122, 78, 42), _color(196, 142, 88), 0.25 + 0.5 * tones + 0.3 * grain)
    return boards * (1 - 0.55 * (ys % plank < 1).view(1, -1, 1).float())


BACKGROUNDS = {
    "meadow": Background(_meadow, "in a meadow", "a meadow"),
    "beach": Background(_beach, "on a beach", "a beach"),
    "night": Background(_night, "under a night sky", "a night sky"),
    "snow": Background(_snow, "on a snow field", "a snow field"),
    "bricks": Background(_bricks, "in front of a brick wall", "a brick wall"),
    "table": Background(_wood, "on a wooden table", "a wooden table"),
    "sky": Background(_sky, "in a blue sky", "a blue sky"),
}
