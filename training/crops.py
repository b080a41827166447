"""Crops for the judge: drawn pictures at the scales at which its pyramid will show them."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Generator, Tensor

from training.pool import entering
from vitrail.demo.judge import JudgeConfig
from vitrail.demo.scenes import OBJECTS, Scene, draw_crowd, draw_scene, render, uniform

CROP = 128  # pixels
MOST = 10  # objects a crop
SMALLEST, LARGEST = 96, 512  # pixels: sides of the pictures that crops are cut from
CROPS_A_PICTURE = 4
LEAST_SEEN = 0.35  # share of an object's square, below which it need not be found
SOFTENED = 0.25  # share of pictures that go through the autoencoder, where there is one
SOFT_LARGEST = 256  # pixels: of those
SOFT_OBJECT = 24  # pixels, three latent cells: smaller ones may dissolve, so they need not be found

Soften = Callable[[Tensor, Generator], Tensor]  # Float32["3 Height Width"] in [0, 1] -> the same


def log_uniform(generator: Generator, low: float, high: float) -> float:
    """One number in [low, high), each octave as likely."""
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def judged_scene(side: int, generator: Generator) -> Scene:
    """Crowds, a third of them of smaller objects, single objects and close-ups, bare backgrounds."""
    kind = uniform(generator, 0, 1)
    if kind < 0.2:
        return draw_scene(generator, close_up=0.35, empty=0.1)
    scene = draw_crowd(generator)
    if kind < 0.7:
        return scene
    small = (evolve(p, size=max(12 / side, p.size * uniform(generator, 0.3, 1))) for p in scene.placements)
    return evolve(scene, placements=tuple(small))


def boxes_of(scene: Scene, side: int, least: float = 0.0) -> Tensor:
    """Class, size, center y, center x in pixels, kind, Float32[Tensor, "objects 5"]; kind is 0 below the least size."""
    sizes = [p.size * side for p in scene.placements]
    rows = [
        (OBJECTS.index(p.name), size, p.center_y * side, p.center_x * side, size >= least)
        for p, size in zip(scene.placements, sizes, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32).view(-1, 5)


@frozen
class Span:
    """One axis of a window: which pixels of the picture it shows, and where in the crop they come to lie."""

    low: int
    high: int
    first: int
    length: int

    @classmethod
    def of(cls, start: int, scale: float, side: int) -> "Span":
        """The span of a window that starts at a pixel, which may lie outside the picture."""
        low, high = max(0, start), min(side, start + math.ceil(CROP / scale))
        return cls(low, high, round((low - start) * scale), max(1, round((high - low) * scale)))

    @property
    def ratio(self) -> float:
        """The true scale, after rounding."""
        return self.length / (self.high - self.low)

    def seen(self, center: Tensor, length: Tensor) -> Tensor:
        """Share of objects' lengths that lies in the crop, all in its pixels, Float32[Tensor, "objects"]."""
        end = min(CROP, self.first + self.length)
        shown = (center + length / 2).clamp(max=end) - (center - length / 2).clamp(min=self.first)
        return shown.clamp(min=0) / length

    def holds(self, center: Tensor) -> Tensor:
        """Whether middles lie in the crop, Bool[Tensor, "objects"]."""
        return (center > self.first) & (center < min(CROP, self.first + self.length))


def cut(picture: Tensor, boxes: Tensor, corner: tuple[int, int], scales: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Cut a window, resize it as the pyramid does, and fill what lies outside the picture with gray.

    Args:
        picture: Float32[Tensor, "3 side side"] in [0, 1].
        boxes: Class, size, center y, center x, kind, Float32[Tensor, "objects 5"].
        corner: Top left of the window in the picture's pixels; may lie outside.
        scales: Of the two axes.

    Returns:
        The crop, Float32[Tensor, "3 128 128"], and class, size, center y, center x, kind of its objects,
        Float32[Tensor, "10 5"]; kind is 1 for an object to be found, 0 for one that need not be (mostly
        cut off, say), -1 for none.
    """
    ys, xs = (Span.of(c, s, side) for c, s, side in zip(corner, scales, picture.shape[-2:], strict=True))
    window = picture[None, :, ys.low : ys.high, xs.low : xs.high]
    part = F.interpolate(window, size=(ys.length, xs.length), mode="bilinear", antialias=True)[0]
    crop = torch.full((3, CROP, CROP), 0.5)
    place = crop[:, ys.first : ys.first + ys.length, xs.first : xs.first + xs.length]
    place.copy_(part[:, : place.shape[1], : place.shape[2]])
    name, size, y, x, kind = boxes.unbind(1)
    y, x = (span.first + (center - span.low) * span.ratio for span, center in ((ys, y), (xs, x)))
    seen = ys.seen(y, size * ys.ratio) * xs.seen(x, size * xs.ratio)
    kind = kind * (ys.holds(y) & xs.holds(x) & (seen >= LEAST_SEEN))
    size = size * math.sqrt(ys.ratio * xs.ratio)
    found = torch.stack([name, size, y, x, kind], dim=1)[seen > 0.02][:MOST]
    none = torch.tensor([0.0, 1.0, 0.0, 0.0, -1.0]).expand(MOST - len(found), 5)
    return crop, torch.cat([found, none])


class CropPool:
    """Crops in memory as uint8, with their objects; each step brings those of one new picture."""

    def __init__(self, size: int, config: JudgeConfig, seed: int, soften: Soften | None = None):
        self._config, self._soften, self._seed, self._newest = config, soften, seed, -1
        self._pictures = size // CROPS_A_PICTURE
        self.crops: Tensor = torch.zeros(self._pictures * CROPS_A_PICTURE, 3, CROP, CROP, dtype=torch.uint8)
        self.boxes: Tensor = torch.zeros(len(self.crops), MOST, 5)

    def advance(self, step: int) -> None:
        """Go to a step."""
        indices = entering(step, 1, self._pictures, self._newest)
        for index in indices:
            first = CROPS_A_PICTURE * (index % self._pictures)
            place = slice(first, first + CROPS_A_PICTURE)
            self.crops[place], self.boxes[place] = self._draw(Generator().manual_seed((self._seed << 40) + index))
        self._newest = max(indices.stop - 1, self._newest)

    def batch(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Crops in [0, 1], Float32[Tensor, "count 3 128 128"], and boxes, Float32[Tensor, "count 10 5"]."""
        chosen = torch.randint(len(self.crops), (count,), generator=generator)
        return self.crops[chosen].float() / 255, self.boxes[chosen]

    def _draw(self, generator: Generator) -> tuple[Tensor, Tensor]:
        soften = self._soften if uniform(generator, 0, 1) < SOFTENED else None
        side = 8 * round(log_uniform(generator, SMALLEST, SOFT_LARGEST if soften else LARGEST) / 8)
        scene = judged_scene(side, generator)
        picture = render(scene, side, side, generator)
        if soften:
            picture = soften(picture, generator)
        boxes = boxes_of(scene, side, SOFT_OBJECT if soften else 0)
        crops, objects = zip(*(self._crop(picture, boxes, generator) for _ in range(CROPS_A_PICTURE)), strict=True)
        return (torch.stack(crops) * 255 + 0.5).to(torch.uint8), torch.stack(objects)

    def _crop(self, picture: Tensor, boxes: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        config, side = self._config, picture.shape[-1]
        coarsest = config.band_high / (config.largest * side)
        if len(boxes) and uniform(generator, 0, 1) < 0.7:
            _, size, y, x, _ = boxes[int(torch.randint(len(boxes), (), generator=generator))].tolist()
            wanted = log_uniform(generator, 0.7 * config.band_low, 1.4 * config.band_high)
            scale = min(max(wanted / size, coarsest), config.top_scale * 1.1)
        else:
            y, x = (uniform(generator, 0, side) for _ in range(2))
            scale = log_uniform(generator, coarsest, config.top_scale)
        y, x = (min(max(c, 1.0), side - 1.0) for c in (y, x))
        stretch = math.exp(uniform(generator, -0.1, 0.1))
        scales = (scale * stretch, scale / stretch)
        corner = [math.floor(c - uniform(generator, 0.1, 0.9) * CROP / s) for c, s in zip((y, x), scales, strict=True)]
        return cut(picture, boxes, (corner[0], corner[1]), scales)
