"""How many threads an operator has on the CPU, which torch lets reach the last bits of what it computes.

With one thread a 1x1 convolution is another algorithm than with several; an elementwise function is cut into as many
chunks as there are threads, and the end of a chunk is computed without vector instructions; a sum over all elements is
added up in as many parts. So the number must follow neither the cores nor the ranks that share them. A network below
``SMALL`` parameters has one thread an operator, wherever it runs, and the cores are filled with forwards side by side,
each of which computes what it would alone. A larger one has the threads of the process, and its ranks as many: its
rows are few, and too large to be in memory many at a time. Ranks compare that number before the first step, and a
checkpoint keeps it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from vitrail.core.method.backbone import Backbone

SMALL = 100_000_000  # parameters


@define
class _Inside:
    """The threads that have one thread an operator for now.

    Attributes:
        count: Of them.
        first: The number of threads an operator that the first of them found.
    """

    count: int = 0
    first: int = 1


_LOCK, _INSIDE = threading.Lock(), _Inside()


@contextmanager
def threads_of(backbone: Backbone) -> Iterator[int]:
    """The threads that operators have in a run of a model, for the calling thread.

    Args:
        backbone: The model, where it will run; a small one on the CPU has one, others what they find.

    Yields:
        How many forwards may be computed side by side.
    """
    if backbone.device.type == "cpu" and _is_small(backbone):
        with one_thread() as found:
            yield found
    else:
        yield 1


def threads_in_bits(backbone: Backbone) -> int | None:
    """Threads an operator, if the last bits of a picture follow them: with a large network on the CPU; else None."""
    import torch

    return None if backbone.device.type != "cpu" or _is_small(backbone) else torch.get_num_threads()


def _is_small(backbone: Backbone) -> bool:
    network = backbone.network
    return network is None or sum(parameter.numel() for parameter in network.parameters()) < SMALL


@contextmanager
def one_thread() -> Iterator[int]:
    """One thread an operator, for the calling thread; what there was before afterwards, also for threads yet to start.

    Yields:
        The number before, which is how many forwards may be computed side by side.
    """
    import torch

    with _LOCK:
        found = torch.get_num_threads()  # 1 in a thread that was started inside
        if not _INSIDE.count:
            _INSIDE.first = found
        _INSIDE.count += 1
        torch.set_num_threads(1)
    try:
        yield max(found, _INSIDE.first)
    finally:
        with _LOCK:
            _INSIDE.count -= 1
            torch.set_num_threads(found if _INSIDE.count else _INSIDE.first)
