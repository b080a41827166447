"""What a network with size conditioning is told about the picture and the view it sees."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen
from attrs import validators as v

Size = Literal["canvas", "native"]


@frozen(kw_only=True)
class SizeConditioning:
    """Micro-conditioning of Stable Diffusion XL; a network without it is told nothing.

    Podell et al., 2023, https://arxiv.org/abs/2307.01952, sec. 2.2. Published methods differ here, and it
    shows in the picture.
    """

    original: Size = field(default="canvas", validator=v.in_(("canvas", "native")))  # before scaling
    target: Size = field(default="canvas", validator=v.in_(("canvas", "native")))  # as it is shown
    crop: Literal["view", "none"] = field(default="view", validator=v.in_(("view", "none")))  # tell where a window lies
