"""Crops for training the judge: drawn pictures at the scales of its image pyramid."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Generator, Tensor

from training.pool import entering
from vitrail.demo.judge import JudgeConfig
from vitrail.demo.scenes import OBJECTS, Scene, draw_crowd, draw_scene, render, uniform

CROP = 128  # side in pixels
MOST = 10  # maximum number of objects in a crop
SMALLEST, LARGEST = 96, 512  # sides in pixels of the pictures that crops are cut from
CROPS_A_PICTURE = 4
LEAST_SEEN = 0.35  # visible share of an object's square below which its detection is neither right nor wrong
SOFTENED = 0.25  # share of pictures that pass through the autoencoder, if there is one
SOFT_LARGEST = 256  # maximum side of those in pixels
SOFT_OBJECT = 24  # pixels, three latent cells: smaller objects may not survive the autoencoder, so they are ignored

Soften = Callable[[Tensor, Generator], Tensor]  # Float32[Tensor, "3 Height Width"] in [0, 1] -> the same


def log_uniform(generator: Generator, low: float, high: float) -> float:
    """Draw a number in [low, high), uniform in its logarithm.

    Args:
        generator: CPU generator.
        low: Lower end, positive, included.
        high: Upper end, excluded.
    """
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def judged_scene(side: int, generator: Generator) -> Scene:
    """Draw a scene of the judge's mix for a picture of ``side`` pixels.

    Crowds with probability 0.5, crowds of smaller objects 0.3, and single objects, close-ups or none 0.2.
    """
    kind = uniform(generator, 0, 1)
    if kind < 0.2:
        return draw_scene(generator, close_up=0.35, empty=0.1)
    scene = draw_crowd(generator)
    if kind < 0.7:
        return scene
    small = (evolve(p, size=max(12 / side, p.size * uniform(generator, 0.3, 1))) for p in scene.placements)
    return evolve(scene, placements=tuple(small))


def boxes_of(scene: Scene, side: int, least: float = 0.0) -> Tensor:
    """Return the objects of a scene as class, size, center y, center x in pixels and kind.

    Args:
        scene: The scene.
        side: Side of the picture in pixels.
        least: Size in pixels below which an object need not be found.

    Returns:
        Float32[Tensor, "objects 5"]; kind is 1 for objects to be found, else 0.
    """
    sizes = [p.size * side for p in scene.placements]
    rows = [
        (OBJECTS.index(p.name), size, p.center_y * side, p.center_x * side, size >= least)
        for p, size in zip(scene.placements, sizes, strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float32).view(-1, 5)


@frozen
class Span:
    """One axis of a window: the range of the picture's pixels that it shows, and their place in the crop.

    Attributes:
        low: First pixel of the picture.
        high: End of the picture's pixels, excluded.
        first: First pixel in the crop.
        length: Length in pixels of the crop.
    """

    low: int
    high: int
    first: int
    length: int

    @classmethod
    def of(cls, start: int, scale: float, side: int) -> "Span":
        """Compute the span of a window of the crop's size.

        Args:
            start: First pixel of the window, possibly outside of the picture.
            scale: Pixels of the crop per pixel of the picture.
            side: Length of the picture in pixels.
        """
        low, high = max(0, start), min(side, start + math.ceil(CROP / scale))
        return cls(low, high, round((low - start) * scale), max(1, round((high - low) * scale)))

    @property
    def ratio(self) -> float:
        """Exact scale after rounding to whole pixels."""
        return self.length / (self.high - self.low)

    def seen(self, center: Tensor, length: Tensor) -> Tensor:
        """Compute the visible share of objects' lengths, all in the crop's pixels, Float32[Tensor, "objects"]."""
        end = min(CROP, self.first + self.length)
        shown = (center + length / 2).clamp(max=end) - (center - length / 2).clamp(min=self.first)
        return shown.clamp(min=0) / length

    def holds(self, center: Tensor) -> Tensor:
        """Return whether centres lie in the crop, Bool[Tensor, "objects"]."""
        return (center > self.first) & (center < min(CROP, self.first + self.length))


def cut(picture: Tensor, boxes: Tensor, corner: tuple[int, int], scales: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Cut a window, resize it as the pyramid does, and fill the part outside of the picture with grey.

    Args:
        picture: Float32[Tensor, "3 side side"] in [0, 1].
        boxes: Class, size, center y, center x, kind, Float32[Tensor, "objects 5"].
        corner: Top and left of the window in the picture's pixels; may lie outside.
        scales: Pixels of the crop per pixel of the picture, vertically and horizontally.

    Returns:
        The crop, Float32[Tensor, "3 128 128"], and class, size, center y, center x, kind of its objects,
        Float32[Tensor, "10 5"]; kind is 1 for an object to be found, 0 for one that need not be (e.g. mostly
        cut off), -1 for padding rows.
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
    """Pool of crops in memory as uint8 with their objects; every step replaces those of one picture.

    Args:
        size: Number of crops.
        config: Settings of the judge.
        seed: Of the pictures.
        soften: The autoencoder; None for no softened pictures.
    """

    def __init__(self, size: int, config: JudgeConfig, seed: int, soften: Soften | None = None):
        self._config, self._soften, self._seed, self._newest = config, soften, seed, -1
        self._pictures = size // CROPS_A_PICTURE
        self.crops: Tensor = torch.zeros(self._pictures * CROPS_A_PICTURE, 3, CROP, CROP, dtype=torch.uint8)
        self.boxes: Tensor = torch.zeros(len(self.crops), MOST, 5)

    def advance(self, step: int) -> None:
        """Draw the crops that the pool lacks at a step."""
        indices = entering(step, 1, self._pictures, self._newest)
        for index in indices:
            first = CROPS_A_PICTURE * (index % self._pictures)
            place = slice(first, first + CROPS_A_PICTURE)
            self.crops[place], self.boxes[place] = self._draw(Generator().manual_seed((self._seed << 40) + index))
        self._newest = max(indices.stop - 1, self._newest)

    def batch(self, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw crops in [0, 1], Float32[Tensor, "count 3 128 128"], and their boxes, Float32[Tensor, "count 10 5"]."""
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
