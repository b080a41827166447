"""Converters and validators shared by the fields of strategies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from attrs import validators as v

LATER = "later"
RAMPS = ("constant", "cosine", "linear", "timestep")
share = v.and_(v.ge(0.0), v.le(1.0))  # a fraction in [0, 1]
share_below_one = v.and_(v.ge(0.0), v.lt(1.0))
share_below_half = v.and_(v.ge(0.0), v.lt(0.5))


def later(**options: Any) -> Any:
    """Return a field, as ``attrs.field`` does, that a class has got since pictures were made with it.

    At its default it is not written, so that recipes, their digests and the addresses of an experiment's cells stay.
    """
    return attrs.field(metadata={LATER: True}, **options)


def is_written(attribute: attrs.Attribute[Any], value: object) -> bool:
    """Whether a field's value is written to recipes and counts in digests: all but ``later`` ones at their default."""
    default: Any = attribute.default
    usual = default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]
    return not attribute.metadata.get(LATER) or value != usual


def as_declared(attribute: attrs.Attribute[Any], value: object) -> object:
    """Return a field's value as it is written: whole numbers in a field of floats as floats, as files are read.

    Otherwise ``scale=2`` and ``scale=2.0`` of Python would be two digests of one picture.
    """
    if "float" not in str(attribute.type):  # an annotation, as a text or resolved
        return value
    if isinstance(value, tuple):
        return tuple(as_declared(attribute, item) for item in value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def not_blank(instance: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    """Refuse a blank text; an unset option is None."""
    if value is not None and not value.strip():
        raise ValueError(f"'{attribute.name}' must be left out or say something: ''")


def as_items(items: Any) -> tuple[Any, ...]:
    """Convert as ``as_tuple``; a value that is no list, e.g. a text, is kept for a clear error later."""
    is_list = isinstance(items, Iterable) and not isinstance(items, (str, Mapping))
    return tuple(items) if is_list else items


def as_tuple(items: Iterable[Any]) -> tuple[Any, ...]:
    """Convert to a tuple, typed so that a checker accepts any iterable where a field holds a tuple."""
    return tuple(items)
