"""Sizes of a picture: those that it grows through, how it enters the next one, and how it is finished. Data, not code.

Numbers are pixels unless stated to be cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_tuple, later
from vitrail.core.config.run_config import MIN_SIZE, PIXELS
from vitrail.core.method.protocols import Upscaler
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from vitrail.core.config.run_config import Wrap

Base = Literal["area", "side"]
Spacing = Literal["side", "area", "ratio"]
Resize = Literal["latents", "pixels"]
Clip = Literal["decoded", "resized"]
Edges = Literal["repeated", "mirrored"]
Rounding = Literal["views", "down"]
MOST_SIZES = 256
STRETCH = 0.05  # most by which a given size may stretch the picture, if that is two cells or more
TINY = 1e-6  # relative tolerance: a growth this close to a whole step counts as that step


def _texts(sizes: str | Iterable[str]) -> tuple[str, ...]:
    return (sizes,) if isinstance(sizes, str) else tuple(sizes)


def _rising(instance: Cascade, attribute: object, sizes: tuple[str, ...]) -> None:
    odd = [size for size in sizes if not isinstance(size, str) or not PIXELS.fullmatch(size)]
    if odd or len(sizes) > MOST_SIZES:
        raise ValueError(f"'sizes' wants texts as 1024 or 1536x1024, width first, at most {MOST_SIZES}; got {odd[:3]}")
    areas = [height * width for height, width in map(_sides, sizes)]
    if any(before >= after for before, after in pairwise(areas)) or 0 in areas:
        raise ValueError(f"'sizes' must grow from one to the next, got {', '.join(sizes)}")
    if sizes and instance.count is not None:
        raise ValueError("'count' and 'sizes' both say how many sizes there are; leave one out")


def _sides(size: str) -> tuple[int, int]:
    """Return (height, width) of a size as text, width first."""
    found = PIXELS.fullmatch(size)
    assert found is not None
    return int(found[2] or found[1]), int(found[1])


@frozen(kw_only=True)
class Cascade:
    """The sizes before the wanted one.

    DemoFusion (Du et al., 2023, https://arxiv.org/abs/2311.16973), sec. 3.2, grows side by side; AP-LDM (Cao et al.,
    2024, https://arxiv.org/abs/2410.06055), sec. 3.3, by equal areas. All sizes have the wanted picture's proportions,
    which are not restricted.
    """

    base: Base = field(default="area", validator=v.in_(("area", "side")))  # of the first size: a training
    # picture's area or, for the longer side, its side
    spacing: Spacing = field(default="ratio", validator=v.in_(("side", "area", "ratio")))  # what grows in equal steps
    count: int | None = field(
        default=None, validator=v.optional(v.and_(v.ge(1), v.le(MOST_SIZES)))
    )  # sizes after the first; if unset one per training size (side) or per doubling (area, ratio)
    rounding: Rounding = later(default="views", validator=v.in_(("views", "down")))  # views: to the nearest size that
    # strided views part evenly; down: to whole latent cells, truncated, as in the code of DemoFusion and AP-LDM
    sizes: tuple[str, ...] = later(
        default=(), converter=_texts, validator=_rising
    )  # in place of base, spacing and rounding: every size before the wanted one, pixels as text, "1024" or "1536x1024"
    # (width first)

    def pictures(
        self, height: int, width: int, native: int, unit: int, wrap: Wrap = "none"
    ) -> tuple[tuple[int, int], ...]:
        """Return every (height, width) from the first to the wanted one; the wanted one alone if it is no larger.

        Args:
            height: Wanted height, pixels.
            width: Wanted width, pixels.
            native: Side of a training picture, pixels.
            unit: Pixels; computed sizes before the last are multiples of it, see ``rounding``.
            wrap: Axes whose ends meet. These cannot be padded, so one stride for both axes must fit there, too.

        Raises:
            ConfigError: If a given size is no smaller than the wanted one, or would stretch the picture.
        """
        if self.sizes:
            return self._given(height, width, unit)
        large = max(height, width) if self.base == "side" else math.sqrt(height * width)
        growth = large / native
        if growth <= 1 + TINY:
            return ((height, width),)
        count, counted = self._count(growth), growth
        if self.rounding == "down" and self.spacing == "area":  # areas are counted from a first one of whole pixels
            counted = math.sqrt(height * width / math.prod(_whole(side / growth, 1) for side in (height, width)))
        further = [counted / self._factor(counted, i, count) for i in range(1, count)]
        fit = _truncated if self.rounding == "down" else _fitted
        sides = [fit(height / g, width / g, native, unit, wrap) for g in (growth, *further)]  # g: wanted size over it
        return (*dict.fromkeys(size for size in sides if size != (height, width)), (height, width))

    def _given(self, height: int, width: int, unit: int) -> tuple[tuple[int, int], ...]:
        """Return the given sizes and the wanted one."""
        sides = [_sides(size) for size in self.sizes]
        for text, (own, beside) in zip(self.sizes, sides, strict=True):
            if own > height or beside > width or (own, beside) == (height, width):
                raise ConfigError(
                    f"cascade.sizes: {text} must be smaller than the wanted {width}x{height}, to which the picture "
                    "grows; leave it out, or ask for a larger picture"
                )
            if abs(own - beside * height / width) > max(STRETCH * own, 2 * unit):
                raise ConfigError(
                    f"cascade.sizes: {text} has other proportions than the wanted {width}x{height}, so the picture "
                    "would be stretched; write WIDTHxHEIGHT in its proportions"
                )
        return (*sides, (height, width))

    def _count(self, growth: float) -> int:
        doublings = math.ceil(math.log2(growth) - TINY)
        return self.count or max(1, math.ceil(growth - TINY) - 1 if self.spacing == "side" else doublings)

    def _factor(self, growth: float, number: int, count: int) -> float:
        """Return the ratio of a size's sides to the first size's."""
        done = number / count
        match self.spacing:
            case "side":
                return 1 + (growth - 1) * done
            case "area":
                return math.sqrt(1 + (growth**2 - 1) * done)
            case "ratio":
                return float(growth**done)


def _fitted(height: float, width: float, native: int, unit: int, wrap: Wrap) -> tuple[int, int]:
    """Return the nearest size that needs no padding; a wrapped axis must also fit the stride of the longer axis."""
    longer = _fit(max(height, width), native, unit)
    down, right = (longer if axis in wrap else 0 for axis in ("y", "x"))
    return _fit(height, native, unit, down), _fit(width, native, unit, right)


def _truncated(height: float, width: float, native: int, unit: int, wrap: Wrap) -> tuple[int, int]:
    """Return the size in whole cells; a wrapped axis, which has no padding, must also fit the strides of both axes."""
    strides = math.lcm(*(max(1, math.floor(side / native + 0.5)) for side in (height, width)))
    rows, cols = (unit * strides if axis in wrap else unit for axis in ("y", "x"))
    return _whole(height, rows), _whole(width, cols)


def _whole(length: float, unit: int) -> int:
    """Return the largest positive multiple of ``unit`` that is no more than a length."""
    return max(1, math.floor(length / unit + TINY)) * unit


def _fit(length: float, native: int, unit: int, longer: int = 0) -> int:
    """Return the nearest positive multiple of ``unit`` and of its own stride, and of a longer axis's if given."""
    unit *= math.lcm(*(max(1, math.floor(each / native + 0.5)) for each in (length, longer)))
    return max(1, math.floor(length / unit + 0.5)) * unit


def _shares(instance: object, attribute: object, values: tuple[float, ...]) -> None:
    if not values or any(not 0 < value <= 1 for value in values):
        raise ValueError(f"'strength' wants shares of the steps above 0 and up to 1, one or more; got {list(values)}")


@frozen(kw_only=True)
class Enter:
    """How a stage begins: from the picture so far, resized to the next size and noised again.

    The stage and those after it run once for every further size of the cascade.
    """

    resize: Resize = field(default="latents", validator=v.in_(("latents", "pixels")))  # space of the resize;
    # pixels cost a decode and an encode by the VAE
    strength: tuple[float, ...] = field(default=(1.0,), converter=as_tuple, validator=_shares)  # share of the
    # schedule's steps that is done; of several, the last is for the last size
    renormalise: bool = False  # give the result the mean and deviation of the first size (DemoFusion)
    sharpen: float = field(default=0.0, validator=v.ge(0))  # with pixels: weight of unsharp masking
    upscaler: Upscaler | None = later(default=None)  # with pixels: enlarges the picture; bicubic
    # interpolation if unset
    clip: Clip = later(default="decoded", validator=v.in_(("decoded", "resized")))  # with pixels: whether colours
    # that the decoder overshoots are clipped before the resize already (DiffuseHigh), or after it alone (AP-LDM)
    edges: Edges = later(default="repeated", validator=v.in_(("repeated", "mirrored")))  # with sharpen: what its blur
    # sees beyond an edge that meets no other (DiffuseHigh's code mirrors)
    relay: bool = later(default=False)  # all sizes share one schedule: the size before stops where this one begins,
    # and its clean prediction is what grows; the further sizes part `strength` equally (MegaFusion)
    reschedule: bool = later(default=False)  # at each timestep as much more noise as the picture has more cells than a
    # training picture, so that its means of the training size have the noise of that timestep (MegaFusion)

    def __attrs_post_init__(self) -> None:
        if self.sharpen and self.resize != "pixels":
            raise ValueError("'sharpen' works on pixels; set resize = \"pixels\", or leave it out")
        if self.edges != "repeated" and not self.sharpen:
            raise ValueError("'edges' are those of the blur that sharpens; set 'sharpen', or leave it out")
        if self.upscaler is not None and self.resize != "pixels":
            raise ValueError("'upscaler' works on pixels; set resize = \"pixels\", or leave it out")
        if self.clip == "resized" and self.upscaler is not None:
            raise ValueError(
                "'clip = \"resized\"' leaves colours out of range while the picture is enlarged, which upscalers are "
                'not made for; set clip = "decoded", or leave the upscaler out'
            )
        if self.clip == "resized" and (self.resize != "pixels" or self.sharpen):
            raise ValueError(
                "'clip = \"resized\"' works on pixels that are not sharpened, as sharpened ones may leave their range; "
                'set resize = "pixels" and no sharpen, or leave it out'
            )
        if self.relay and len(self.strength) > 1:
            raise ValueError(
                "'relay' parts one share of the schedule equally between the further sizes, and 'strength' has "
                f"{len(self.strength)}; give one, or leave relay out"
            )

    def share(self, number: int, count: int) -> float:
        """Return the strength for size ``number`` of the ``count`` further sizes."""
        return self.strength[max(0, len(self.strength) - (count - number))]


@frozen(kw_only=True)
class Finish:
    """How a picture that is sampled smaller gets the wanted size: it is decoded and enlarged by an upscaler.

    With BSRGAN it is the row "SDXL+BSRGAN" of ASGDiffusion (Li et al., 2024, https://arxiv.org/abs/2412.06163).
    """

    upscaler: Upscaler  # enlarges the decoded picture
    base: Base = field(default="area", validator=v.in_(("area", "side")))  # of the sampled size: a training picture's
    # area or, for the longer side, its side
    factor: float | None = field(default=None, validator=v.optional(v.gt(1)))  # sides of the wanted picture over those
    # of the sampled one; if unset the sampled one has the training size

    def __attrs_post_init__(self) -> None:
        if self.factor is not None and self.base != "area":
            raise ValueError("'base' is about the training size, which 'factor' does without; leave one out")

    def sampled(self, height: int, width: int, native: int, unit: int, wrap: Wrap = "none") -> tuple[int, int]:
        """Return the (height, width) to sample; without a factor the wanted one if a training picture is no smaller.

        Args:
            height: Wanted height, pixels.
            width: Wanted width, pixels.
            native: Side of a training picture, pixels.
            unit: Pixels; the sides are multiples of it, as those of ``Cascade.pictures``, or the wanted ones.
            wrap: Axes whose ends meet.

        Raises:
            ConfigError: If the factor leaves nothing to enlarge, or almost nothing to sample.
        """
        if self.factor is None:
            return Cascade(base=self.base).pictures(height, width, native, unit, wrap)[0]
        down, right = _fitted(height / self.factor, width / self.factor, native, unit, wrap)
        sampled = min(down, height), min(right, width)
        if sampled == (height, width) or min(sampled) < MIN_SIZE:
            raise ConfigError(
                f"finish.factor = {self.factor:g}: of {width}x{height} it would sample {sampled[1]}x{sampled[0]}; "
                f"choose one with which that is smaller, and {MIN_SIZE} pixels or more"
            )
        return sampled
