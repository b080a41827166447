"""Number of threads per operator on the CPU, which affects the last bits of torch's results.

With one thread a 1x1 convolution uses another algorithm than with several; an elementwise function is split into as
many chunks as there are threads, and the end of a chunk is computed without vector instructions; a sum over all
elements is added up in as many parts. So the number must depend neither on the cores nor on the ranks that share them.
A network below ``SMALL`` parameters has one thread per operator wherever it runs, and the cores are filled with
concurrent forwards, each of which computes what it would alone. A larger network has the threads of the process, the
same number on every rank: its rows are few, and too large to have many in memory at a time. Ranks compare that number
before the first step, and a checkpoint keeps it.
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
    """The calling threads that currently use one thread per operator.

    Attributes:
        count: Number of such calling threads.
        first: Threads per operator before the first of them.
    """

    count: int = 0
    first: int = 1


_LOCK, _INSIDE = threading.Lock(), _Inside()


@contextmanager
def threads_of(backbone: Backbone) -> Iterator[int]:
    """Set the threads per operator for a run of a model, in the calling thread.

    Args:
        backbone: The model, on the device where it will run; a small one on the CPU gets one thread per operator,
            others keep the current number.

    Yields:
        How many forwards may be computed concurrently.
    """
    if backbone.device.type == "cpu" and _is_small(backbone):
        with one_thread() as found:
            yield found
    else:
        yield 1


def threads_in_bits(backbone: Backbone) -> int | None:
    """Return the threads per operator if they affect the picture's last bits (large network, CPU), else None."""
    import torch

    return None if backbone.device.type != "cpu" or _is_small(backbone) else torch.get_num_threads()


def _is_small(backbone: Backbone) -> bool:
    network = backbone.network
    return network is None or sum(parameter.numel() for parameter in network.parameters()) < SMALL


@contextmanager
def one_thread() -> Iterator[int]:
    """Use one thread per operator in the calling thread; restored afterwards, also for threads started later.

    Yields:
        The number before, which is how many forwards may be computed concurrently.
    """
    import torch

    with _LOCK:
        found = torch.get_num_threads()  # 1 in a thread that was started within such a context
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
