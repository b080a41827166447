"""Sites: named places inside a network, which a method file selects by ``sites``.

A site is the dotted name of a module in the network, ``up_blocks.0`` or ``down_blocks.1.attentions.0``; it selects
every fitting place at it or below. ``*`` matches any one part: ``up_blocks.*.attentions.0``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from vitrail.errors import CapabilityError, nearest

BLOCKS = ("down_blocks", "mid_block", "up_blocks")  # the parts of diffusers' U-Nets


def sites_in(*blocks: str) -> Callable[[Any, Any, Sequence[str]], None]:
    """Return a validator of ``sites``: each must begin with one of the blocks; the rest is checked with the network."""

    def validate(instance: Any, attribute: Any, value: Sequence[str]) -> None:
        for site in value:
            first = site.partition(".")[0]
            if not any(fnmatchcase(block, first) for block in blocks):
                raise ValueError(f"the site {site!r} begins with no part of a network{nearest(first, blocks)}")

    return validate


def choose(places: Iterable[str], sites: Sequence[str], what: str) -> dict[str, list[str]]:
    """Return the places that each site selects.

    Args:
        places: Names of everything that fits, in the network's order.
        sites: Sites of a method file.
        what: Kind of place, for the message.

    Raises:
        CapabilityError: For sites that select nothing, with the nearest name and the blocks that have places.
    """
    known = list(places)
    chosen = {site: [name for name in known if _stands_for(site, name)] for site in sites}
    unknown = [site for site, names in chosen.items() if not names]
    if unknown or not known:
        blocks = list(dict.fromkeys(re.match(r"\w+(\.\d+)?", name)[0] for name in known))  # type: ignore[index]
        parts = {".".join(name.split(".")[:count]) for name in known for count in range(1, name.count(".") + 2)}
        hints = [f"{site!r}" + nearest(site, parts).partition(";")[0] for site in unknown]
        where = f" at {', '.join(hints)}" if hints else ""
        raise CapabilityError(f"there is no {what}{where}; this network has some in: {', '.join(blocks) or 'no block'}")
    return chosen


def present(places: Iterable[str], sites: Sequence[str]) -> list[str]:
    """Return the sites that select something."""
    known = list(places)
    return [site for site in sites if any(_stands_for(site, name) for name in known)]


def each_once(names: Sequence[str], strategy: str) -> None:
    """Refuse places that more than one site selects, where each site has values of its own.

    Raises:
        CapabilityError: Naming the places.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CapabilityError(f"{strategy}: more than one site stands for {', '.join(twice)}; name each block once")


def _stands_for(site: str, name: str) -> bool:
    parts, pattern = name.split("."), site.split(".")
    return len(pattern) <= len(parts) and all(map(fnmatchcase, parts, pattern))
