"""Assignment of work to ranks: a pure function, so that every rank knows all shares without communication.

A unit is what cannot be divided, one micro-batch of rows or several; units are numbered in canonical order, and results
do not depend on the assignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitrail.errors import ConfigError


def assign(costs: Sequence[float], speeds: Sequence[float], first: int | None = None) -> tuple[int, ...]:
    """Return the owner of every unit: each goes to the rank that would finish it first, the lowest of equals.

    Args:
        costs: Costs of the units, in canonical order.
        speeds: Relative speeds of the ranks; their number is the world size.
        first: A unit that others wait for; it is assigned and computed before all others.

    Returns:
        A rank per unit; ranks that are not needed have none.

    Raises:
        ConfigError: If a speed is not a positive number.
    """
    check_speeds(speeds)
    owners = [0] * len(costs)
    loads = [0.0] * len(speeds)
    for unit in in_order(len(costs), first):
        ends = [(load + costs[unit]) / speed for load, speed in zip(loads, speeds, strict=True)]
        owner = ends.index(min(ends))
        owners[unit], loads[owner] = owner, loads[owner] + costs[unit]
    return tuple(owners)


def check_speeds(speeds: Sequence[float]) -> None:
    """Refuse relative speeds of ranks that are not positive numbers, or none at all.

    Raises:
        ConfigError: If one is not.
    """
    if not speeds or not all(speed > 0 and math.isfinite(speed) for speed in speeds):
        raise ConfigError(f"relative speeds of ranks must be positive numbers, got {list(speeds)}")


def in_order(units: int, first: int | None) -> list[int]:
    """Return units in the order of computation: the one that others wait for, then the rest in order."""
    return sorted(range(units), key=lambda unit: (unit != first, unit))


def rounds(owners: Sequence[int], world_size: int, first: int | None = None) -> list[list[int]]:
    """Return units by round: in round j every rank computes the j-th of its own, if it has one.

    Args:
        owners: Rank of every unit.
        world_size: Number of ranks.
        first: A unit that others wait for, computed before all others.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for unit in in_order(len(owners), first):
        shares[owners[unit]].append(unit)
    return [[share[j] for share in shares if j < len(share)] for j in range(max(map(len, shares), default=0))]
