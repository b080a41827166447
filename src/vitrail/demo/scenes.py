"""Training data of the demo model: scenes of sprites on procedural backgrounds, rendered at any size.

An object scales with the frame; a background's texture has a fixed scale in pixels. That difference is
what "more detail at high resolution" means for this data set. All randomness comes from the caller's generator.
"""

import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from attrs import field, frozen
from PIL import Image
from torch import Generator, Tensor

from vitrail.core.config.fields import as_tuple
from vitrail.demo.backgrounds import BACKGROUNDS

SPRITES = Path(__file__).parent / "sprites"
OBJECTS = tuple(sorted(path.stem for path in SPRITES.glob("*.webp")))
BASE_SIZE = 128  # pixels: the size the demo model is trained at
MIN_SPRITE = 16  # pixels: the smallest level of a sprite's pyramid


@frozen
class Placement:
    """One object of a scene.

    Attributes:
        name: Of its sprite, one of ``OBJECTS``.
        size: Side of the sprite over the shorter side of the frame.
        center_y: Its centre over the frame's height, 0 at the top.
        center_x: Its centre over the frame's width, 0 at the left.
    """

    name: str
    size: float
    center_y: float
    center_x: float


@frozen
class Scene:
    """Resolution-independent content of a picture: a background and placed objects, drawn in order."""

    background: str
    placements: tuple[Placement, ...] = field(converter=as_tuple)

    @property
    def caption(self) -> str:
        """The caption that the demo model is trained on; it names the first object only."""
        place = BACKGROUNDS[self.background]
        if not self.placements:
            return place.alone
        name = self.placements[0].name.replace("-", " ")
        article = "an" if name[0] in "aeiou" else "a"
        return f"{article} {name} {place.phrase}"


@functools.cache
def sprite_pyramid(name: str) -> tuple[Tensor, ...]:
    """Sprite with premultiplied alpha at 512, 256, ... 16 pixels, each Float32[Tensor, "4 side side"] in [0, 1]."""
    with Image.open(SPRITES / f"{name}.webp") as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGBA").tobytes()), dtype=torch.uint8)
        rgba = pixels.view(image.height, image.width, 4).permute(2, 0, 1).float() / 255
    levels = [torch.cat([rgba[:3] * rgba[3:], rgba[3:]])]
    while levels[-1].shape[-1] > MIN_SPRITE:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return tuple(levels)


def paste(picture: Tensor, placement: Placement) -> Tensor:
    """Composite one object over a picture.

    Args:
        picture: Float32[Tensor, "3 Height Width"] in [0, 1].
        placement: Object, position and size; parts outside the frame are cut off.

    Returns:
        The picture with the object, Float32[Tensor, "3 Height Width"].
    """
    height, width = picture.shape[-2:]
    side = placement.size * min(height, width)
    top, left = placement.center_y * height - side / 2, placement.center_x * width - side / 2
    y0, y1 = max(0, math.floor(top)), min(height, math.ceil(top + side))
    x0, x1 = max(0, math.floor(left)), min(width, math.ceil(left + side))
    if y1 <= y0 or x1 <= x0:
        return picture
    level = next((s for s in reversed(sprite_pyramid(placement.name)) if s.shape[-1] >= side), None)
    sprite = sprite_pyramid(placement.name)[0] if level is None else level
    ys = ((torch.arange(y0, y1, dtype=picture.dtype, device=picture.device) + 0.5 - top) / side) * 2 - 1
    xs = ((torch.arange(x0, x1, dtype=picture.dtype, device=picture.device) + 0.5 - left) / side) * 2 - 1
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], dim=-1)
    cut = F.grid_sample(sprite[None], grid[None], align_corners=False)[0]
    result = picture.clone()
    result[:, y0:y1, x0:x1] = picture[:, y0:y1, x0:x1] * (1 - cut[3:]) + cut[:3]
    return result


def render(scene: Scene, height: int, width: int, generator: Generator) -> Tensor:
    """Render a scene at a size; such pictures are the reference that samples are compared with.

    Args:
        scene: The content, independent of the size.
        height: Pixels.
        width: Pixels.
        generator: CPU generator for the texture of the background.

    Returns:
        Float32[Tensor, "3 height width"] in [0, 1].
    """
    picture = BACKGROUNDS[scene.background].draw(height, width, generator)
    for placement in scene.placements:
        picture = paste(picture, placement)
    return picture.clamp(0, 1)


def uniform(generator: Generator, low: float, high: float) -> float:
    """Draw a uniform number in [low, high).

    Args:
        generator: CPU generator.
        low: Lower end, included.
        high: Upper end, excluded.
    """
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float32, device="cpu").item()


def choice(generator: Generator, options: tuple[str, ...]) -> str:
    """Draw one of the options, all equally likely."""
    return options[int(torch.randint(len(options), (), generator=generator, dtype=torch.int64, device="cpu"))]


def draw_scene(generator: Generator, close_up: float = 0.09, empty: float = 0.08) -> Scene:
    """Draw a scene of the denoiser's training mix: whole objects, close-ups, backgrounds without objects.

    Args:
        generator: CPU generator.
        close_up: Probability of a close-up: object size 0.9 to 2.2 of the shorter side, centre anywhere.
        empty: Probability of a background without objects.
    """
    background = choice(generator, tuple(BACKGROUNDS))
    name = choice(generator, OBJECTS)
    kind = uniform(generator, 0, 1)
    if kind < empty:
        return Scene(background, ())
    if kind < empty + close_up:
        size, shift = uniform(generator, 0.9, 2.2), 0.5
    else:
        size, shift = uniform(generator, 0.5, 0.8), 0.08
    y, x = (0.5 + uniform(generator, -shift, shift) for _ in range(2))
    return Scene(background, (Placement(name, size, y, x),))


def draw_crowd(generator: Generator, most: int = 9) -> Scene:
    """Draw a scene of 0 to ``most`` objects with little overlap, as the judge is trained on.

    Sizes are 0.1 to 1.0 of the shorter side; a draw that would overlap another object by more than a fifth of
    the smaller one's size is rejected, so there may be fewer objects than drawn.
    """
    background = choice(generator, tuple(BACKGROUNDS))
    wanted = int(torch.randint(most + 1, (), generator=generator, dtype=torch.int64, device="cpu"))
    largest = min(1.0, 1.1 / math.sqrt(max(wanted, 1)))
    placed: list[Placement] = []
    for _ in range(8 * wanted):
        size = uniform(generator, 0.1, largest)
        low = min(0.5, 0.42 * size)
        spot = Placement(
            choice(generator, OBJECTS), size, uniform(generator, low, 1 - low), uniform(generator, low, 1 - low)
        )
        if len(placed) < wanted and not any(_overlap(spot, other) for other in placed):
            placed.append(spot)
    return Scene(background, placed)


def _overlap(one: Placement, other: Placement) -> bool:
    gap = max(abs(one.center_y - other.center_y), abs(one.center_x - other.center_x))
    return gap < (one.size + other.size) / 2 - 0.2 * min(one.size, other.size)
