"""A reference set of scenes from the demo model's training distribution, rendered at any size."""

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

SCHEME = 1  # version of the drawing; raised whenever the same fields would give other pixels
OBJECT_STEP, PLACE_STEP = 5, 3  # coprime to the numbers of objects and backgrounds, so that all pairs occur in turn
SMALLEST, LARGEST = 0.45, 0.85  # an object's size over the shorter side, as in most pictures of the training set
SHIFT = 0.08  # maximum offset of its centre, over the picture's side


@frozen(kw_only=True)
class DemoRenders:
    """Rendered pictures of one whole object each, cycling through objects and backgrounds: the demo model's target.

    The demo model was trained on such pictures of 128 pixels; these are rendered at the requested size.
    """

    count: int = field(default=256, validator=v.ge(1))  # number of pictures
    seed: int = 0  # of positions, sizes and textures

    def pictures(self, height: int, width: int) -> Iterator[Shown]:
        """Yield the pictures at a size in pixels, with captions; the i-th scene is the same at every size and count."""
        from vitrail.demo.scenes import BASE_SIZE, render

        streams = Streams(self.seed)
        for number in range(self.count):
            scene = scene_of(number, streams.generator("reference scene", number))
            picture = render(scene, height, width, streams.generator("reference texture", number))
            yield Shown(picture=picture, prompt=scene.caption, native_size=BASE_SIZE)

    @property
    def digest(self) -> str:
        """SHA-256 digest of the fields and of the version of the drawing."""
        return hashlib.sha256(f"demo-renders/{SCHEME}/{self.count}/{self.seed}".encode()).hexdigest()


def scene_of(number: int, generator: Generator) -> Scene:
    """Return a scene of one whole object near the centre; the number determines object and background."""
    from vitrail.demo.backgrounds import BACKGROUNDS
    from vitrail.demo.scenes import OBJECTS, Placement, Scene, uniform

    places = tuple(BACKGROUNDS)
    size = uniform(generator, SMALLEST, LARGEST)
    y, x = (0.5 + uniform(generator, -SHIFT, SHIFT) for _ in range(2))
    name = OBJECTS[OBJECT_STEP * number % len(OBJECTS)]
    return Scene(places[PLACE_STEP * number % len(places)], (Placement(name, size, y, x),))
