"""A pool of drawn pictures that is renewed a little at every step."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from vitrail.backbones.demo.scenes import BASE_SIZE, Scene, draw_crowd, draw_scene, render


class PicturePool:
    """Pictures in memory as uint8, with their scenes; ``refresh`` replaces the oldest ones."""

    def __init__(self, size: int, generator: Generator, draw: Callable[[Generator], Scene] = draw_scene):
        self._draw, self._next = draw, 0
        drawn = [self._one(generator) for _ in range(size)]
        self.scenes: list[Scene] = [scene for scene, _ in drawn]
        self.pictures: Tensor = torch.stack([picture for _, picture in drawn])

    def _one(self, generator: Generator) -> tuple[Scene, Tensor]:
        scene = self._draw(generator)
        picture = render(scene, BASE_SIZE, BASE_SIZE, generator)
        return scene, (picture * 255 + 0.5).to(torch.uint8)

    def refresh(self, count: int, generator: Generator) -> None:
        """Draw ``count`` new pictures over the oldest."""
        for _ in range(count):
            self.scenes[self._next], self.pictures[self._next] = self._one(generator)
            self._next = (self._next + 1) % len(self.scenes)

    def crops(self, count: int, side: int, generator: Generator) -> Tensor:
        """Random crops in [-1, 1], Float32[Tensor, "count 3 side side"]."""
        chosen = torch.randint(len(self.scenes), (count,), generator=generator).tolist()
        corners = torch.randint(BASE_SIZE - side + 1, (count, 2), generator=generator).tolist()
        cuts = [self.pictures[i, :, y : y + side, x : x + side] for i, (y, x) in zip(chosen, corners, strict=True)]
        return torch.stack(cuts).float() / 127.5 - 1


def mixed_scene(generator: Generator) -> Scene:
    """Mostly the training mix, a quarter crowds: the autoencoder must know small objects too."""
    crowd = torch.rand((), generator=generator).item() < 0.25
    return draw_crowd(generator) if crowd else draw_scene(generator)
