"""Who computes what: a pure function, so that every rank knows everybody's share without a word.

A unit is what cannot be divided, a micro-batch of rows or several; units are numbered in canonical order, and
nothing that is computed depends on who computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitrail.errors import ConfigError


def assign(costs: Sequence[float], speeds: Sequence[float], first: int | None = None) -> tuple[int, ...]:
    """The owner of every unit: each goes to the rank that would finish it first, the lowest of equals.

    Args:
        costs: Of the units, in canonical order.
        speeds: Relative speeds of the ranks; their number is the world size.
        first: A unit that others wait for; it is given away, and computed, before all others.

    Returns:
        A rank for every unit; ranks that are not needed have none.

    Raises:
        ConfigError: If a speed is not a positive number.
    """
    wrong = [speed for speed in speeds if not (speed > 0 and math.isfinite(speed))]
    if wrong or not speeds:
        raise ConfigError(f"relative speeds of ranks must be positive numbers, got {list(speeds)}")
    owners = [0] * len(costs)
    loads = [0.0] * len(speeds)
    for unit in in_order(len(costs), first):
        ends = [(load + costs[unit]) / speed for load, speed in zip(loads, speeds, strict=True)]
        owner = ends.index(min(ends))
        owners[unit], loads[owner] = owner, loads[owner] + costs[unit]
    return tuple(owners)


def in_order(units: int, first: int | None) -> list[int]:
    """Units in the order in which they are computed: the one that others wait for, then the rest as they are."""
    return sorted(range(units), key=lambda unit: (unit != first, unit))


def rounds(owners: Sequence[int], world_size: int, first: int | None = None) -> list[list[int]]:
    """Units by round: in round j every rank computes the j-th of its own; some have none in the last."""
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for unit in in_order(len(owners), first):
        shares[owners[unit]].append(unit)
    return [[share[j] for share in shares if j < len(share)] for j in range(max(map(len, shares), default=0))]
