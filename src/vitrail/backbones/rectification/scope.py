"""Scope of a rectification: the sites of a network, the steps, CFG branches and views at which it acts.

A site is the dotted name of a module in the network, ``up_blocks.0`` or ``down_blocks.1.attentions.0``; it selects
every fitting place at it or below. ``*`` matches any one part: ``up_blocks.*.attentions.0``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, get_args

from attrs import frozen
from attrs import validators as v

from vitrail.core.method.micro_batch import Branch
from vitrail.errors import CapabilityError, nearest

if TYPE_CHECKING:
    from vitrail.core.method.protocols import Forward
    from vitrail.core.schedule.step import Step

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


@frozen(eq=False)
class Block:
    """A block of the encoder, the middle or the decoder.

    Attributes:
        name: Dotted name in the network.
        module: The block itself.
        halvings: Number of downsamplers before it, less upsamplers.
    """

    name: str
    module: Any
    halvings: int


def blocks(network: Any) -> Iterator[Block]:
    """Yield every block, in the order of the forward."""
    halvings = 0
    for name, module in _named(network):
        yield Block(name, module, halvings)
        halvings += getattr(module, "downsamplers", None) is not None
        halvings -= getattr(module, "upsamplers", None) is not None


def _named(network: Any) -> Iterator[tuple[str, Any]]:
    yield from ((f"down_blocks.{i}", module) for i, module in enumerate(network.down_blocks))
    if network.mid_block is not None:
        yield "mid_block", network.mid_block
    yield from ((f"up_blocks.{i}", module) for i, module in enumerate(network.up_blocks))


known_branches = v.deep_iterable(v.in_(get_args(Branch)))  # validator of ``branches``


def steps_between(step: Step, start: float, until: float, truncated: bool = False) -> range:
    """Return the steps in a range of shares of a phase's schedule.

    Args:
        step: A step of the phase.
        start: Share of the steps before the range.
        until: Share of the steps at its end.
        truncated: Whether a part of a step counts as none, as in HiDiffusion's code; else shares are rounded half up,
            as a stage's ``until``.
    """
    half = 0.0 if truncated else 0.5
    begin, end = (math.floor(share * step.phase_num_steps + half) for share in (start, until))
    return range(begin, end)


def within(step: Step, start: float, until: float, truncated: bool = False) -> bool:
    """Whether a step lies in a range of shares of its schedule's steps; see ``steps_between``.

    Args:
        step: The step.
        start: Share of the steps before the range.
        until: Share of the steps at its end.
        truncated: Whether a part of a step counts as none.
    """
    return step.phase_step in steps_between(step, start, until, truncated)


def after_start(instance: Any, attribute: Any, value: float) -> None:
    """Validate ``until``: it must be greater than ``start`` and at most 1.

    Raises:
        ValueError: If it is not.
    """
    if not instance.start < value <= 1:
        raise ValueError(f"'until' must be more than 'start' ({instance.start:g}) and at most 1, got {value:g}")


def scale_of(forward: Forward) -> float:
    """Return the longer side of the views over the side of a training picture."""
    return max(forward.rows.views[0].shape) / forward.native_size


def is_larger(forward: Forward) -> bool:
    """Whether the views have more cells than a training picture."""
    height, width = forward.rows.views[0].shape
    return height * width > forward.native_size**2
