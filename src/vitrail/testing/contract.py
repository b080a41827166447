"""What all contract checks share: an instance, errors as assertions, and repeats in other surroundings.

A strategy is a pure function of its arguments, independent of instance, process state and rank. The same calls are
made on copies of it several times: twice on one instance, with another state of the global random generators, with
another default dtype, and on two ranks concurrently, which are threads with exchanges of their own. State kept on the
instance or in its module, global randomness and dependence on the rank show as different results.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vitrail.comm.backends.in_process import InProcess, solo
from vitrail.core.config.registry import Registry
from vitrail.core.engine.exchange import Exchange
from vitrail.errors import VitrailError

RANKS = 2  # number of concurrent ranks
SECONDS = 120.0  # timeout of a wait between ranks
DTYPES = (torch.float64, torch.bfloat16)  # default dtypes to check besides float32
Play = Callable[[Any, Exchange], Any]


def instance_of(slot: str, strategy: Any) -> Any:
    """Return an instance, after the checks of registration in the slot; a class is built with its defaults.

    Raises:
        RegistrationError: If the class cannot be registered.
    """
    cls = strategy if isinstance(strategy, type) else type(strategy)
    Registry().add(slot, "under-test", cls)
    return strategy() if isinstance(strategy, type) else strategy


@contextmanager
def contract() -> Iterator[None]:
    """Turn a ``VitrailError`` of the block, as the engine's checks raise it, into an AssertionError.

    Raises:
        AssertionError: With the message of the error.
    """
    try:
        yield
    except VitrailError as error:
        raise AssertionError(str(error)) from error


def check_repeats(strategy: Any, play: Play, dtypes: Sequence[torch.dtype] = DTYPES) -> None:
    """Repeat the same calls in different surroundings and compare the results bit by bit.

    Args:
        strategy: The strategy; copies of it are called.
        play: Makes all calls on a strategy with a rank's exchange, and returns their results: tensors and plain data in
            tuples, lists and mappings.
        dtypes: Default dtypes to check besides float32.

    Raises:
        AssertionError: Naming what the results depend on.
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
    """Run a block with another global random state and default dtype, and restore both.

    Args:
        seed: Seed of Python's, numpy's and torch's generators.
        dtype: Default dtype of torch.
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
        except AssertionError as error:
            if dtype != torch.float32:
                error.add_note(
                    f"asked under torch.set_default_dtype({dtype}): a tensor is made of it if no dtype is named"
                )
            raise
        finally:
            torch.set_default_dtype(default)
            numpy.random.set_state(numbers)
            random.setstate(before)


def dtype_message(who: str, dtype: torch.dtype) -> str:
    """Return the error message for a result of ``who`` that depends on the default dtype."""
    return f"{who} changes with torch.set_default_dtype({dtype}); name the dtype"


def same(one: Any, other: Any, otherwise: str) -> None:
    """Assert that two results are equal bit by bit.

    Args:
        one: Tensors and plain data in tuples, lists and mappings.
        other: The result to compare with.
        otherwise: The error message.

    Raises:
        AssertionError: If types, dtypes, shapes or values differ.
    """
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
