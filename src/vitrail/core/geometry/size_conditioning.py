"""What a network with size conditioning is told about the picture and the view it sees."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs import validators as v

Size = Literal["canvas", "native", "phase"]
SIZES = ("canvas", "native", "phase")
Crop = Literal["view", "none", "padded"]
CROPS = ("view", "none", "padded")


@frozen(kw_only=True)
class SizeConditioning:
    """Micro-conditioning of Stable Diffusion XL; a network without it is told nothing.

    Podell et al., 2023, https://arxiv.org/abs/2307.01952, sec. 2.2. Published methods differ here, and it
    shows in the picture. ``canvas`` is the wanted picture's size, ``phase`` that of the phase, ``native`` a training
    picture's. With ``crop = "padded"`` a window lies where the authors of DemoFusion say it lies: on a canvas with a
    border as wide as their windows of half overlap may move, an eighth of a window.
    """

    original: Size = field(default="canvas", validator=v.in_(SIZES))  # before scaling
    target: Size = field(default="canvas", validator=v.in_(SIZES))  # as it is shown
    crop: Crop = field(default="view", validator=v.in_(CROPS))  # where a window lies; padded: as DemoFusion's code says
