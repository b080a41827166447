"""Pool of drawn pictures in memory, partly renewed at every step; picture i depends on seed and i only."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from vitrail.demo.scenes import BASE_SIZE, Scene, draw_crowd, draw_scene, render


def picture_of(seed: int, index: int, draw: Callable[[Generator], Scene]) -> tuple[Scene, Tensor]:
    """Draw scene and picture number ``index`` of a seed.

    Args:
        seed: Seed of the sequence.
        index: Number of the picture.
        draw: Draws a scene.

    Returns:
        The scene and its picture, UInt8[Tensor, "3 128 128"].
    """
    generator = Generator().manual_seed((seed << 40) + index)
    scene = draw(generator)
    picture = render(scene, BASE_SIZE, BASE_SIZE, generator)
    return scene, (picture * 255 + 0.5).to(torch.uint8)


def entering(step: int, fresh: int, size: int, newest: int) -> range:
    """Return the indices that a pool lacks at a step.

    Args:
        step: Training step; the pool then holds ``size`` indices from ``step * fresh`` on.
        fresh: Number of new indices per step.
        size: Size of the pool.
        newest: Largest index in the pool; -1 if it is empty.
    """
    end = step * fresh + size
    return range(max(newest + 1, end - size), end)


class PicturePool:
    """Pool that holds, at step k, pictures ``k * fresh`` up to but excluding ``k * fresh + size`` with their scenes.

    Args:
        size: Number of pictures.
        fresh: New pictures per step.
        seed: Seed of the sequence of pictures.
        draw: Draws a scene.
    """

    def __init__(self, size: int, fresh: int, seed: int, draw: Callable[[Generator], Scene] = draw_scene):
        self._draw, self._seed, self._fresh = draw, seed, fresh
        self._newest = -1  # index of the newest picture in memory
        self.scenes: list[Scene] = [Scene("sky", ())] * size
        self.pictures: Tensor = torch.zeros(size, 3, BASE_SIZE, BASE_SIZE, dtype=torch.uint8)

    def advance(self, step: int) -> list[int]:
        """Draw the pictures that the pool lacks at a step, and return the positions that changed."""
        size = len(self.scenes)
        indices = entering(step, self._fresh, size, self._newest)
        for index in indices:
            self.scenes[index % size], self.pictures[index % size] = picture_of(self._seed, index, self._draw)
        self._newest = max(indices.stop - 1, self._newest)
        return [index % size for index in indices]

    def crops(self, count: int, side: int, generator: Generator) -> Tensor:
        """Draw random crops of random pictures in [-1, 1].

        Args:
            count: Number of crops.
            side: Side in pixels.
            generator: CPU generator.

        Returns:
            Float32[Tensor, "count 3 side side"].
        """
        chosen = torch.randint(len(self.scenes), (count,), generator=generator).tolist()
        corners = torch.randint(BASE_SIZE - side + 1, (count, 2), generator=generator).tolist()
        cuts = [self.pictures[i, :, y : y + side, x : x + side] for i, (y, x) in zip(chosen, corners, strict=True)]
        return torch.stack(cuts).float() / 127.5 - 1


def mixed_scene(generator: Generator, crowds: float = 0.25) -> Scene:
    """Draw a scene of the training mix, or with probability ``crowds`` a crowd, so that small objects occur as well."""
    crowd = torch.rand((), generator=generator).item() < crowds
    return draw_crowd(generator) if crowd else draw_scene(generator)
