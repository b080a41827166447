"""Converters and validators that the fields of strategies share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import validators as v

RAMPS = ("constant", "cosine", "linear", "timestep")
share = v.and_(v.ge(0.0), v.le(1.0))  # a part of the whole, both ends allowed
share_below_one = v.and_(v.ge(0.0), v.lt(1.0))
share_below_half = v.and_(v.ge(0.0), v.lt(0.5))


def as_items(items: Any) -> tuple[Any, ...]:
    """As ``as_tuple``; what is no list, such as a text or a strategy alone, stays for a clear refusal later."""
    is_list = isinstance(items, Iterable) and not isinstance(items, (str, Mapping))
    return tuple(items) if is_list else items


def as_tuple(items: Iterable[Any]) -> tuple[Any, ...]:
    """``tuple``, typed so that a checker accepts any sequence where a field holds a tuple."""
    return tuple(items)
