"""A region of the picture with a prompt of its own, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.core.config.fields import as_items, not_blank, share, share_below_one


def _box(instance: object, attribute: Any, box: tuple[float, ...]) -> None:
    """Refuse a box that is no rectangle of some area within the picture."""
    if not isinstance(box, tuple) or len(box) not in (0, 4):
        raise ValueError(f"'box' must be four shares of the picture, [left, top, right, bottom]: {box!r}")
    if not box:
        return
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        hint = "; in pixels it would not survive another size: divide by width and height" if max(box) > 1 else ""
        raise ValueError(
            f"'box' must be [left, top, right, bottom] with 0 <= left < right <= 1 and 0 <= top < bottom <= 1, as "
            f"shares of width and height: {list(box)}{hint}"
        )


@frozen(kw_only=True)
class Region:
    """A part of the picture that is asked with a prompt of its own."""

    noun: ClassVar[str] = "a region"
    prompt: str  # text of the region; "" is the empty text
    box: tuple[float, ...] = field(
        default=(), converter=as_items, validator=_box
    )  # [left, top, right, bottom] as shares of width and height
    mask: str | None = field(
        default=None, validator=not_blank
    )  # instead of a box, a picture that is stretched over this one: white is inside, black outside
    negative_prompt: str | None = None  # what to avoid there; "" is the empty text, unset the run's
    weight: float = field(default=1.0, validator=v.gt(0))  # share against other regions where they overlap
    feather: float = field(default=0.0, validator=share_below_one)  # width of its soft edge, half of it inside and
    # half outside, as a share of the picture's shorter side
    bootstrap: float = field(default=0.4, validator=share)  # share of the first size's steps at which it is asked with
    # a plain colour in place of all that lies outside, so that its object stays inside

    def __attrs_post_init__(self) -> None:
        if bool(self.box) == (self.mask is not None):
            raise ValueError("a region needs either a 'box' or a 'mask'")


def as_regions(regions: Iterable[Region | Mapping[str, Any]]) -> tuple[Region, ...]:
    """Convert regions, also as plain tables, to a tuple."""
    if isinstance(regions, (str, Mapping)):
        raise TypeError("'regions' must be a list of tables with a 'prompt' and a 'box' or a 'mask'")
    return tuple(Region(**each) if isinstance(each, Mapping) else each for each in regions)
