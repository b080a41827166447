"""An exact permutation test of paired integer differences, which take too few values for the bootstrap alone.

Under the null hypothesis the two values of a pair are exchangeable, so both signs of a difference are equally likely
(Fisher, 1935, The Design of Experiments, sec. 21). The p-value is the share of all assignments of signs whose sum is at
least as far from 0. For differences of -1, 0 and 1 this is the two-sided sign test over the pairs that differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def chance(differences: Sequence[int], clusters: Sequence[Hashable] | None = None) -> float:
    """Compute the two-sided p-value of the sum of paired integer differences under random signs.

    Args:
        differences: One per pair.
        clusters: Cluster of each difference; those of one cluster share one sign. None if each has its own.

    Returns:
        The p-value in (0, 1]; 1 if all differences are 0.
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
