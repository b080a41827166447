"""Damage that is planted in drawn pictures of one object, with an amplitude from none to much."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Generator, Tensor

from vitrail.demo.scenes import OBJECTS, Placement, Scene, choice, paste, render, uniform

GAP = 0.04  # of the shorter side, between a speck and the object
TRIES = 1000
FAINT = 0.02  # opacity


@frozen(eq=False)
class Drawn:
    """A true render and what it is made of.

    Attributes:
        scene: One object on a background.
        picture: Float32[Tensor, "3 side side"] in [0, 1].
        bare: The same background without the object, as ``picture``.
    """

    scene: Scene
    picture: Tensor
    bare: Tensor

    @property
    def object(self) -> Placement:
        """The only object."""
        return self.scene.placements[0]

    @property
    def opacity(self) -> Tensor:
        """Of the object, Float32[Tensor, "side side"]."""
        black, white = (paste(torch.full_like(self.bare, tone), self.object) for tone in (0.0, 1.0))
        return 1 - (white - black).mean(dim=0)


def draw(scene: Scene, side: int, generator: Generator) -> Drawn:
    """Render a scene and its bare background with the same texture.

    Args:
        scene: With one object.
        side: Pixels.
        generator: Of the texture.
    """
    state = generator.get_state()
    picture = render(scene, side, side, generator)
    bare = render(Scene(scene.background, ()), side, side, generator.set_state(state))
    return Drawn(scene, picture, bare)


def specks(drawn: Drawn, size: float, generator: Generator) -> Tensor:
    """Plant one round piece of another object's inside, away from the object.

    Args:
        drawn: What is damaged.
        size: Diameter over the shorter side; 0 plants nothing.
        generator: Of the place and the object.

    Returns:
        Float32[Tensor, "3 side side"].

    Raises:
        ValueError: If there is no place for it.
    """
    if not size:
        return drawn.picture
    side, opacity, reach = drawn.picture.shape[-1], drawn.opacity, size / 2 + GAP
    for _ in range(TRIES):
        y, x = (uniform(generator, size, 1 - size) for _ in range(2))
        rows, columns = (slice(max(0, round((c - reach) * side)), round((c + reach) * side)) for c in (y, x))
        if float(opacity[rows, columns].max()) < FAINT:
            break
    else:
        raise ValueError(f"no place for a piece of {size:g} beside {drawn.object}")
    other = choice(generator, tuple(name for name in OBJECTS if name != drawn.object.name))
    inside = paste(drawn.bare, Placement(other, 4 * size, y, x))
    rows, columns = _points(side)
    disc = (((rows - y).square() + (columns - x).square()).sqrt() < size / 2).float()
    return drawn.picture + (inside - drawn.picture) * disc


def missing(drawn: Drawn, share: float, generator: Generator) -> Tensor:
    """Cut a share of the object's area off, by a straight line in any direction.

    Args:
        drawn: What is damaged.
        share: Of the object's area.
        generator: Of the direction.

    Returns:
        Float32[Tensor, "3 side side"].
    """
    angle = uniform(generator, 0, 2 * math.pi)
    rows, columns = _points(drawn.picture.shape[-1])
    depth = rows * math.sin(angle) + columns * math.cos(angle)
    opacity = drawn.opacity
    inside = depth[opacity > 0.5]
    gone = (depth < inside.quantile(share)).float() if share else torch.zeros_like(depth)
    return drawn.picture + (drawn.bare - drawn.picture) * gone


def mixed(drawn: Drawn, share: float, generator: Generator) -> Tensor:
    """Give a share of the object's area the inside of another object: a part that is not its own.

    Args:
        drawn: What is damaged.
        share: Of the object's area.
        generator: Of the direction and the other object.

    Returns:
        Float32[Tensor, "3 side side"].
    """
    other = choice(generator, tuple(name for name in OBJECTS if name != drawn.object.name))
    spot = drawn.object
    foreign = paste(drawn.bare, Placement(other, 1.6 * spot.size, spot.center_y, spot.center_x))
    kept = missing(drawn, share, generator)
    changed = ((kept - drawn.picture).abs().amax(dim=0) > 0).float() * drawn.opacity
    return drawn.picture + (foreign - drawn.picture) * changed


def ragged(drawn: Drawn, reach: float, generator: Generator) -> Tensor:
    """Displace the picture's points by smooth noise, so that outlines fray.

    Args:
        drawn: What is damaged.
        reach: Standard deviation of the displacement over the shorter side.
        generator: Of the noise.

    Returns:
        Float32[Tensor, "3 side side"].
    """
    side = drawn.picture.shape[-1]
    noise = torch.randn((1, 2, side // 8, side // 8), generator=generator, dtype=torch.float32, device="cpu")
    smooth = F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)
    identity = F.affine_grid(torch.eye(2, 3)[None], [1, 3, side, side], align_corners=False)
    grid = identity + 2 * reach * smooth.movedim(1, -1)
    return F.grid_sample(drawn.picture[None], grid, padding_mode="reflection", align_corners=False)[0]


def soft(drawn: Drawn, width: float, generator: Generator) -> Tensor:
    """Blur the picture by a Gaussian.

    Args:
        drawn: What is damaged.
        width: Standard deviation over the shorter side.
        generator: Unused.

    Returns:
        Float32[Tensor, "3 side side"].
    """
    pixels = width * drawn.picture.shape[-1]
    if not pixels:
        return drawn.picture
    reach = math.ceil(3 * pixels)
    kernel = (-torch.arange(-reach, reach + 1, dtype=torch.float32).square() / (2 * pixels**2)).exp()
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = F.pad(drawn.picture[None], (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3)[0]


def _points(side: int) -> tuple[Tensor, Tensor]:
    """Middles of pixels over the side, "side 1" and "1 side"."""
    middles = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    return middles[:, None], middles[None]


DAMAGES: dict[str, Callable[[Drawn, float, Generator], Tensor]] = {
    "specks": specks,
    "missing": missing,
    "mixed": mixed,
    "ragged": ragged,
    "soft": soft,
}
