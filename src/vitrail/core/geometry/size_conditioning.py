"""Size conditioning: the picture size, target size and crop offset that a network is given for a view."""

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
    """Micro-conditioning of Stable Diffusion XL; ignored by networks without it.

    Podell et al., 2023, https://arxiv.org/abs/2307.01952, sec. 2.2. Published methods choose these values differently,
    which changes the picture. ``canvas`` is the size of the wanted picture, ``phase`` that of the picture at this phase
    of a cascade, ``native`` that of a training picture. ``crop = "padded"`` places a window as DemoFusion's code does:
    on a canvas with a border as wide as its windows of half overlap may shift, an eighth of a window.
    """

    original: Size = field(default="canvas", validator=v.in_(SIZES))  # size before scaling
    target: Size = field(default="canvas", validator=v.in_(SIZES))  # size as shown
    crop: Crop = field(default="view", validator=v.in_(CROPS))  # crop offset of a view; padded: as in DemoFusion's code
