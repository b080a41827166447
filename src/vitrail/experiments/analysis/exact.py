"""An exact test of paired differences that are whole numbers, which take too few values for the bootstrap alone.

If two rows are alike, the two numbers of a pair could as well be swapped, so every sign of a difference is as likely
(Fisher, 1935, The Design of Experiments, sec. 21). Of all ways to choose the signs, the share that gives a sum at least
as far from 0 is the chance. For differences of -1, 0 and 1 this is the two-sided sign test over the pairs that differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def chance(differences: Sequence[int], clusters: Sequence[Hashable] | None = None) -> float:
    """How often signs alone would give a sum as far from 0 as that of some whole numbers.

    Args:
        differences: Of pairs.
        clusters: What each is of; differences of one cluster have one sign together. None if each is its own.

    Returns:
        In (0, 1]; 1 if no difference is other than 0.
    """
    sums: dict[Hashable, int] = {}
    for number, each in enumerate(differences):
        cluster = number if clusters is None else clusters[number]
        sums[cluster] = sums.get(cluster, 0) + each
    sizes = [abs(each) for each in sums.values() if each]
    ways = {0: 1}
    for size in sizes:
        longer: dict[int, int] = {}
        for total, count in ways.items():
            for end in (total - size, total + size):
                longer[end] = longer.get(end, 0) + count
        ways = longer
    reached = abs(sum(sums.values()))
    far: int = sum(count for total, count in ways.items() if abs(total) >= reached)
    return far / int(2 ** len(sizes))
