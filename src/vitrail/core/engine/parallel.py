"""Concurrent computations on the cores of one process, with one thread per operator; timing affects no bit."""

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
    """Compute a function of several items concurrently.

    Args:
        function: With several workers, called in a thread that has the caller's inference mode and context.
        items: Its arguments.
        workers: Number of concurrent computations, started in the order of the items; with 1 a result is computed when
            it is requested.

    Yields:
        For every item a callable that returns the result, or raises what the computation raised. Computations that have
        not started when the block ends are dropped.
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
    """Wrap a function so that it runs in this thread's inference and gradient modes."""
    import torch

    inference, graph = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def compute(item: S) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(graph):
            return function(item)

    return compute
