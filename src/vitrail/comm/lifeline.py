"""The bond of a rank to the process that started it: the rank ends when that process ends, in any way.

``vitrail sample --ranks`` gives each rank one end of a socket pair. A thread of the rank reads from it from the start,
and sees when the other end is closed, which the system does also for a killed process. The rank sends on it that it has
started, that it no longer needs other ranks, and that its work is done. Under torchrun, which provides no socket, the
thread polls the parent's process id. Where the system supports it, a stopped rank is continued when its parent dies, so
that it can notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path

VARIABLE = "VITRAIL_LIFELINE"  # number of the file descriptor
TORCHRUN = "TORCHELASTIC_RUN_ID"
LOOK_S = 0.2  # between two polls of the parent
HERE, ALONE, DONE, CUT = b"h", b"a", b"d", b"c"
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux
GONE = "the process that started the ranks is gone"

Clean = Callable[[], None]


class Lifeline:
    """The launcher's end of a rank's lifeline."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._heard = b""

    @property
    def is_here(self) -> bool:
        """Whether the rank has started and handles signals itself."""
        return HERE in self._read()

    @property
    def is_alone(self) -> bool:
        """Whether the rank no longer needs any other."""
        return ALONE in self._read()

    @property
    def is_done(self) -> bool:
        """Whether the rank's work is done."""
        return DONE in self._read()

    def cut(self) -> None:
        """Request that the rank ends."""
        self._read()
        with contextlib.suppress(OSError):
            self._ours.send(CUT)
        self._ours.close()

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):  # no new data, or the rank has ended
            if self._ours.fileno() >= 0:
                self._heard += self._ours.recv(16)
        return self._heard


_lines: list[socket.socket] = []  # this process's end, if it is a rank with a lifeline
_held = threading.Event()


def hold(clean: Clean = lambda: None) -> None:
    """End this process when its launcher ends; no effect without a launcher or on a second call.

    Args:
        clean: Clean-up that is called before, from another thread.
    """
    number = os.environ.pop(VARIABLE, "")  # child processes of a rank are not ranks
    if _held.is_set():
        return
    if number.isdecimal():
        line = socket.socket(fileno=int(number))
        line.set_inheritable(False)
        _lines.append(line)
        _watch(lambda: line.recv(1) != CUT, clean)
        tell(HERE)
    elif {TORCHRUN, "RANK"} <= os.environ.keys():
        parent = os.getppid()
        _watch(lambda: _is_adopted(parent) or _wait_for_another_parent(parent), clean)


def hold_to_parent() -> None:
    """As ``hold``, for a process started by ``multiprocessing``."""
    parent = multiprocessing.parent_process()
    if parent is not None and not _held.is_set():
        _watch(lambda: bool(connection.wait([parent.sentinel])), lambda: None)


def tell(word: bytes) -> None:
    """Send a word to the launcher, if there is a lifeline."""
    for line in _lines:
        with contextlib.suppress(OSError):  # the launcher is gone, which the thread notices, too
            line.send(word)


def _watch(is_gone: Callable[[], bool], clean: Clean) -> None:
    """Start the watching thread; ``is_gone`` blocks until the end, and returns False if the end was requested."""
    _held.set()
    _continue_with_parents_death()

    def until_its_end() -> None:
        gone = True
        with contextlib.suppress(OSError):
            gone = is_gone()
        try:
            clean()
            if gone and os.environ.get("RANK") == "0":
                os.write(2, f"vitrail: {GONE}, so the ranks end, too\n".encode())
        finally:
            os._exit(1)  # without the interpreter's shutdown, which waits for other threads

    threading.Thread(target=until_its_end, name="lifeline", daemon=True).start()


def _is_adopted(parent: int) -> bool:
    """Whether torchrun ended before this process could look: its parent is the first process, which is no Python."""
    if parent != 1:
        return False
    try:
        command = Path("/proc/1/cmdline").read_bytes()
    except OSError:  # not supported here
        return False
    return b"python" not in command and b"torchrun" not in command


def _wait_for_another_parent(number: int) -> bool:
    while os.getppid() == number:
        time.sleep(LOOK_S)
    return True


def _continue_with_parents_death() -> None:
    try:
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGCONT)
    except (AttributeError, OSError, TypeError):  # not supported here; only stopped ranks need it
        return
