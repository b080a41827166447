"""True pictures of the demo model's drawn world, at any size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.method.metric import Shown
from vitrail.core.schedule.streams import Streams

if TYPE_CHECKING:
    from torch import Generator

    from vitrail.demo.scenes import Scene

SCHEME = 1  # changes whenever the same fields would give other pictures
OBJECT_STEP, PLACE_STEP = 5, 3  # prime to the numbers of objects and of backgrounds, so that all pairs come in turn
SMALLEST, LARGEST = 0.45, 0.85  # an object's size over the shorter side, as in most pictures of the training set
SHIFT = 0.08  # of its middle, either way


@frozen(kw_only=True)
class DemoRenders:
    """Drawn pictures of one whole object each, objects and backgrounds in turn: what the demo model should make.

    The demo model learned from such pictures of 128 pixels; these are drawn at the size that is asked for.
    """

    count: int = field(default=256, validator=v.ge(1))  # pictures
    seed: int = 0  # of places, sizes and textures

    def pictures(self, height: int, width: int) -> Iterator[Shown]:
        """The pictures with their captions; a picture's scene is the same at every size, and for every count."""
        from vitrail.demo.scenes import BASE_SIZE, render

        streams = Streams(self.seed)
        for number in range(self.count):
            scene = scene_of(number, streams.generator("reference scene", number))
            picture = render(scene, height, width, streams.generator("reference texture", number))
            yield Shown(picture=picture, prompt=scene.caption, native_size=BASE_SIZE)

    @property
    def digest(self) -> str:
        """Of the fields and of how they are read."""
        return hashlib.sha256(f"demo-renders/{SCHEME}/{self.count}/{self.seed}".encode()).hexdigest()


def scene_of(number: int, generator: Generator) -> Scene:
    """One whole object near the middle; object and background follow from the number."""
    from vitrail.demo.backgrounds import BACKGROUNDS
    from vitrail.demo.scenes import OBJECTS, Placement, Scene, uniform

    places = tuple(BACKGROUNDS)
    size = uniform(generator, SMALLEST, LARGEST)
    y, x = (0.5 + uniform(generator, -SHIFT, SHIFT) for _ in range(2))
    name = OBJECTS[OBJECT_STEP * number % len(OBJECTS)]
    return Scene(places[PLACE_STEP * number % len(places)], (Placement(name, size, y, x),))
