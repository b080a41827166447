"""Independent computations on the cores of one process, each with one thread an operator; no bit depends on when."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


@contextmanager
def begun(function: Callable[[S], T], items: Sequence[S], workers: int) -> Iterator[list[Callable[[], T]]]:
    """Answers to be asked for in the order of the items.

    Args:
        function: Computes one; if there are workers, in a thread that has the caller's inference mode and context.
        items: Of which it is computed.
        workers: How many at once, in the order of the items; with 1 an answer is computed when it is asked for.

    Yields:
        For every item a callable that gives the answer, or raises what the computation raised. What was not begun when
        the block ends is dropped.
    """
    if workers < 2 or len(items) < 2:
        yield [partial(function, item) for item in items]
        return
    pool = ThreadPoolExecutor(min(workers, len(items)), "forward", _one_thread)
    try:
        here = _in_the_mode_of_this_thread(function)
        yield [pool.submit(contextvars.copy_context().run, here, item).result for item in items]
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _in_the_mode_of_this_thread(function: Callable[[S], T]) -> Callable[[S], T]:
    """A function that records no more of a graph than this thread does."""
    import torch

    inference, graph = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def compute(item: S) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(graph):
            return function(item)

    return compute
