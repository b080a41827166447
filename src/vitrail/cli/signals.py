"""What Ctrl-C and SIGTERM do, decided in one place for every command.

At any moment one rule is in force: the process ends at once while nothing is at stake, the first signal asks work to
stop and the second ends it, or signals wait until something short is done. Rules nest, the innermost holds.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from vitrail.core.config import atomic

INTERRUPTED = 128 + signal.SIGINT  # exit code
UNTOLD = 3  # exit code of a rank that leaves it to its launcher to say what happened
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def ended_at_once() -> Iterator[None]:
    """A signal ends the process without an exception, which a library that is being imported might swallow.

    A file that is being written is cleaned up first, by KeyboardInterrupt. SIGTERM ends a rank as if nobody handled it,
    but leaves no half a file behind; this holds under every rule.
    """
    others = () if signal.SIGTERM in handled() else (signal.SIGTERM,)
    with _handling(_die, others), _handling(_end):
        yield


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """The first signal asks work to stop, the second raises KeyboardInterrupt.

    Args:
        stop: Called from the handler.
    """

    def first(*_: object) -> None:
        for number in handled():
            signal.signal(number, signal.default_int_handler)
        stop()

    with _handling(first):
        yield


@contextmanager
def raising() -> Iterator[None]:
    """A signal raises KeyboardInterrupt."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def held() -> Iterator[None]:
    """A signal waits until the block is done, and then raises KeyboardInterrupt."""
    came: list[int] = []
    with _handling(lambda number, _: came.append(number)):
        yield
    if came:
        raise KeyboardInterrupt


def handled() -> tuple[signal.Signals, ...]:
    """The signals that a rule is about: in a rank that a launcher started, SIGTERM is the launcher's, and deadly."""
    return (signal.SIGINT,) if {"RANK", "SLURM_PROCID"} & os.environ.keys() else (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _handling(handler: Handler, numbers: Iterable[signal.Signals] | None = None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where no rule can be made, and the outer one holds
        yield
        return
    chosen = handled() if numbers is None else numbers
    before = {number: signal.signal(number, handler) for number in chosen}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _die(number: int, _: FrameType | None) -> None:
    atomic.discard()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _end(number: int, _: FrameType | None) -> NoReturn:
    if atomic.in_work():
        raise KeyboardInterrupt
    message = b"Stopped.\n" if atomic.count_written() else b"Stopped; nothing was written.\n"
    os.write(2, message)
    os._exit(128 + number)
