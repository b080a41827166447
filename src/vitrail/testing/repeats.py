"""A strategy is a function of its arguments: the same answers whoever asks, and whatever the process is set to.

The same questions are put to copies of a strategy several times: with another state of the global random generators,
with another default dtype, to one that was asked before, and on two ranks at once, which are threads with exchanges of
their own. What a strategy keeps on itself or in its module, draws from global randomness or takes from its rank shows
as another answer.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vitrail.comm.backends.in_process import InProcess, solo
from vitrail.core.engine.exchange import Exchange

RANKS = 2
SECONDS = 120.0  # that a rank waits for another
DTYPES = (torch.float64, torch.bfloat16)  # defaults that a process may have set besides float32
Play = Callable[[Any, Exchange], Any]


def check_repeats(strategy: Any, play: Play, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Put the same questions again and again.

    Args:
        strategy: Stays as it is; copies are asked.
        play: Puts all questions to a strategy, with a rank's exchange, and gives the answers: tensors and plain data in
            tuples, lists and mappings.
        dtypes: Default dtypes to try besides float32.

    Raises:
        AssertionError: Naming what reached the answers that must not.
    """
    first, again, elsewhere, *rest = (copy.deepcopy(strategy) for _ in range(3 + len(dtypes) + RANKS))
    ranks = rest[len(dtypes) :]

    def ask(one: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        with surroundings(seed, dtype):
            return play(one, Exchange.among(solo()))

    answers = ask(first)
    same(
        answers, ask(first), "an instance that is asked the same again answers otherwise: it keeps something on itself"
    )
    same(answers, ask(again), "another instance answers otherwise: something is kept in the class or its module")
    same(answers, ask(elsewhere, seed=1), "it draws from the global random state; draw from the run's streams")
    for one, dtype in zip(rest, dtypes, strict=False):
        same(answers, ask(one, dtype=dtype), dtype_message("it", dtype))
    with surroundings(0, torch.float32):
        found = InProcess(timeout=SECONDS).run(RANKS, lambda c: play(ranks[c.rank], Exchange.among(c)))
    for rank, theirs in enumerate(found):
        same(answers, theirs, f"rank {rank} of {RANKS} answers otherwise: it depends on the rank or the thread")


@contextmanager
def surroundings(seed: int, dtype: torch.dtype) -> Iterator[None]:
    """Another global random state and default dtype for a while.

    Args:
        seed: Of Python's, numpy's and torch's generators.
        dtype: That torch makes tensors of if none is named.
    """
    import numpy

    before, numbers, default = random.getstate(), numpy.random.get_state(), torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        numpy.random.seed(seed)
        torch.manual_seed(seed)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
            numpy.random.set_state(numbers)
            random.setstate(before)


def dtype_message(who: str, dtype: torch.dtype) -> str:
    """What is wrong with whoever answers otherwise under another default dtype."""
    return f"{who} changes with torch.set_default_dtype({dtype}); name the dtype"


def same(one: Any, other: Any, otherwise: str) -> None:
    """Hold two answers against each other, bit for bit."""
    assert _is_same(one, other), otherwise


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return bool(one == other)
