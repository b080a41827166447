"""Handling of Ctrl-C, SIGTERM and a terminal that is closed (SIGHUP) for every command.

One of four rules is in force at any time: end the process immediately (``ended_at_once``), ask the work to stop and end
it at the second signal (``stopping``), raise KeyboardInterrupt (``raising``), or defer signals to the end of a short
block (``held``). Rules nest, the innermost one applies.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from vitrail.core.config import atomic

INTERRUPTED = 128 + signal.SIGINT  # exit code
UNTOLD = 3  # exit code of a rank whose launcher reports the error
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def ended_at_once() -> Iterator[None]:
    """End the process at a signal without an exception, which a library might catch while it is imported.

    While a file is written, KeyboardInterrupt is raised instead, so that the partial file is removed. In a rank of a
    launcher SIGTERM, under every rule, removes partial files and then has its default effect.
    """
    others = () if signal.SIGTERM in handled() else (signal.SIGTERM,)
    with _handling(_die, others), _handling(_end):
        yield


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` at the first signal, raise KeyboardInterrupt at the second.

    Args:
        stop: Called from the signal handler.
    """

    def first(number: int, _: object) -> None:
        for each in handled():
            again = number == each == getattr(signal, "SIGHUP", None)  # a shell passes on what the terminal has said
            signal.signal(each, signal.SIG_IGN if again else signal.default_int_handler)
        stop()

    with _handling(first):
        yield


@contextmanager
def raising() -> Iterator[None]:
    """Raise KeyboardInterrupt at a signal."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Defer signals to the end of the block, and then raise KeyboardInterrupt."""
    came: list[int] = []
    with _handling(lambda number, _: came.append(number)):
        yield
    if came:
        raise KeyboardInterrupt


def handled() -> tuple[signal.Signals, ...]:
    """Return the signals that rules handle.

    Not SIGTERM in a rank of a launcher, which uses it to kill the rank; SIGHUP unless ``nohup`` or a parent ignores it.
    """
    if {"RANK", "SLURM_PROCID"} & os.environ.keys():
        return (signal.SIGINT,)
    ignored = not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if ignored else (signal.SIGHUP,)))


@contextmanager
def _handling(handler: Handler, numbers: Iterable[signal.Signals] | None = None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # handlers can only be set in the main thread
        yield
        return
    chosen = handled() if numbers is None else numbers
    before = {number: signal.signal(number, handler) for number in chosen}
    try:
        yield
    finally:
        for number, former in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # else a hangup was heeded, and the shell's comes later
                signal.signal(number, former)


def _die(number: int, _: FrameType | None) -> None:
    atomic.discard()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _end(number: int, _: FrameType | None) -> NoReturn:
    if atomic.in_work():
        raise KeyboardInterrupt
    message = b"Stopped.\n" if atomic.count_written() else b"Stopped; nothing was written.\n"
    with suppress(OSError):  # the terminal may be gone
        os.write(2, message)
    os._exit(128 + number)
