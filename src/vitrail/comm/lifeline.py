"""What ties a rank to the process that started it: when that ends, however it does, the rank ends.

``vitrail sample --ranks`` gives each rank one end of a socket pair. A thread of the rank reads from it, from the rank's
first line on, and sees when the other end is closed, which the system does for a process that was killed, too. The rank
says on it that it is here, that it needs no other rank any more, and that its work is done. Under torchrun, which gives
none, the thread looks at who the parent is. A rank that is stopped is continued when its parent dies, where the system
can do so, to see all this.
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

VARIABLE = "VITRAIL_LIFELINE"  # number of the file descriptor
TORCHRUN = "TORCHELASTIC_RUN_ID"
LOOK_S = 0.2  # between two looks at the parent
HERE, ALONE, DONE, CUT = b"h", b"a", b"d", b"c"
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux
GONE = "the process that started the ranks is gone"

Clean = Callable[[], None]


class Lifeline:
    """The launcher's end."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._heard = b""

    @property
    def is_here(self) -> bool:
        """Whether the rank has begun to decide what signals do."""
        return HERE in self._read()

    @property
    def is_alone(self) -> bool:
        """Whether the rank needs no other any more."""
        return ALONE in self._read()

    @property
    def is_done(self) -> bool:
        """Whether the rank's work is done."""
        return DONE in self._read()

    def cut(self) -> None:
        """Have the rank end."""
        self._read()
        with contextlib.suppress(OSError):
            self._ours.send(CUT)
        self._ours.close()

    def _read(self) -> bytes:
        with contextlib.suppress(OSError):  # nothing new, or the rank is gone
            if self._ours.fileno() >= 0:
                self._heard += self._ours.recv(16)
        return self._heard


_lines: list[socket.socket] = []  # this process's end, if it is a rank that has one
_held = threading.Event()


def hold(clean: Clean = lambda: None) -> None:
    """End this process when its launcher ends; does nothing in one that has none, nor when it is called again.

    Args:
        clean: Called before, from a thread, to leave nothing half done behind.
    """
    number = os.environ.pop(VARIABLE, "")  # programs that a rank starts are no ranks
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
        _watch(lambda: _wait_for_another_parent(parent), clean)


def hold_to_parent() -> None:
    """The same for a process that ``multiprocessing`` has started."""
    parent = multiprocessing.parent_process()
    if parent is not None and not _held.is_set():
        _watch(lambda: bool(connection.wait([parent.sentinel])), lambda: None)


def tell(word: bytes) -> None:
    """Tell the launcher, if it listens."""
    for line in _lines:
        with contextlib.suppress(OSError):  # it is gone, which the thread sees, too
            line.send(word)


def _watch(is_gone: Callable[[], bool], clean: Clean) -> None:
    """Start the thread; ``is_gone`` waits for the end, and tells whether it came by itself."""
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
            os._exit(1)  # without the interpreter's goodbye, which waits for other threads

    threading.Thread(target=until_its_end, name="lifeline", daemon=True).start()


def _wait_for_another_parent(number: int) -> bool:
    while os.getppid() == number:
        time.sleep(LOOK_S)
    return True


def _continue_with_parents_death() -> None:
    try:
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGCONT)
    except (AttributeError, OSError, TypeError):  # not this system's; a rank that is not stopped needs none
        return
