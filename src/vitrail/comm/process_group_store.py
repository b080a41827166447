"""A rank's line to the run's store: word of aborts, heartbeats, who is behind.

The line has a connection and a thread of its own, since a store's client that two threads use at once blocks.
"""

from __future__ import annotations

import atexit
import datetime
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import asdict, frozen

from vitrail.comm.transport import Abort
from vitrail.errors import CommError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

LOOPBACK = "127.0.0.1"
BEAT_S = 0.075  # between two heartbeats
BLAME_S = 1.5  # a broken connection waits so long for somebody who knows which rank died
SILENT_S = 1.0  # a heartbeat that is older tells of a rank that is stopped or dead
ANSWER_S = 1.0  # the store's answer to a question
NOTE_S = 0.05  # until a note is written down
LEAVE_S = 1.5  # to end by oneself after the store was lost
FOREVER = datetime.timedelta(days=30)  # waits are bounded here, not in the store


@frozen
class Beat:
    """What a rank tells of itself."""

    posted: int = -1
    note: str = ""
    time: float = float("-inf")


def local_listener() -> socket.socket:
    """A socket for a store that only this host can reach, at any free port."""
    return socket.create_server((LOOPBACK, 0), backlog=128)


def host(port: int, listener: socket.socket | None = None) -> TCPStore:
    """Keep a store in this process, at a port or with a socket that already listens there.

    Raises:
        CommError: If the port is taken.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    given = None if listener is None else listener.detach()
    try:
        server: TCPStore = TCPStore(LOOPBACK, port, None, True, wait_for_workers=False, master_listen_fd=given)
        return server
    except RuntimeError as error:
        raise CommError(
            f"port {port} cannot be opened for the run's store; set MASTER_PORT to a free one ({_first_line(error)})"
        ) from error


def connect(address: str, port: int, timeout: float) -> TCPStore:
    """A new connection to a run's store.

    Raises:
        CommError: If nobody answers.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store: TCPStore = TCPStore(
            address, port, None, False, datetime.timedelta(seconds=timeout), wait_for_workers=False
        )
    except RuntimeError as error:
        raise CommError(
            f"the run's store at {address}:{port} did not answer within {timeout:g} s; does the launcher or rank 0 run "
            f"there, and can this host reach it? ({_first_line(error)})"
        ) from error
    store.set_timeout(FOREVER)
    return store


def within(store: Store, namespace: str) -> Store:
    """A part of a store."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    part: Store = PrefixStore(namespace, store)
    return part


def _first_line(error: BaseException | str) -> str:
    return str(error).strip().partition("\n")[0]


def read_abort(store: Store) -> Abort | None:
    """The abort that the store knows of."""
    return Abort(**json.loads(store.get("abort"))) if store.check(["abort"]) else None


def write_abort(store: Store, abort: Abort) -> Abort:
    """Revoke the run; gives the abort that counts, the first."""
    return Abort(**json.loads(store.compare_set("abort", "", json.dumps(asdict(abort)))))


def read_beat(store: Store, rank: int) -> Beat:
    """What a rank told last."""
    key = f"beat/{rank}"
    return Beat(**json.loads(store.get(key))) if store.check([key]) else Beat()


class StoreLine:
    """The line of one rank.

    Args:
        store: A client that nobody else uses.
        rank: This rank.
        world_size: Number of ranks.
        lost: Whose fault it is if the store goes away, and why.
    """

    def __init__(self, store: Store, rank: int, world_size: int, lost: Abort):
        self._store, self._rank, self._world_size, self._lost = store, rank, world_size, lost
        self.clock: Callable[[], float] = time.monotonic
        self.abort: Abort | None = None
        self.posted = 0
        self.note = ""
        self.is_closing = False  # after a clean end the store may go
        self._broken: tuple[float, str] | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="store-line", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # the thread must not be in the store when the interpreter ends

    # ------------------------------------------------------------------ from the rank's thread, or any other

    def tell(self, note: str) -> None:
        """Say where this rank is, so that it is known even if the process dies at once."""
        self.note = note
        self._ask(self._beat, NOTE_S)

    def revoke(self, abort: Abort) -> None:
        """Abort the run; the first abort of all ranks counts."""

        def write() -> None:
            self.abort = write_abort(self._store, abort)

        if self.abort is None and not self._ask(write) and self.abort is None:
            self.abort = abort  # the store does not answer: known here only

    def broken(self, error: str) -> None:
        """A connection to a peer broke; ends the run unless somebody who knows more does."""
        if self._broken is None:
            self._broken = time.monotonic(), _first_line(error)

    def beats(self) -> list[Beat]:
        """What all ranks told last; nothing where the store does not answer."""
        found: list[Beat] = []

        def read() -> None:
            found.extend(self._read_beats())

        return found if self._ask(read) else [Beat() for _ in range(self._world_size)]

    def behind(self) -> tuple[int, str]:
        """The rank that holds the others up, and where it was last.

        One without a heartbeat, which is stopped or dead; else the one that has posted least; this rank unless
        another has posted less.
        """
        beats = self.beats()
        latest = max(beat.time for beat in beats)

        def progress(rank: int) -> tuple[bool, float, bool]:
            beat = beats[rank]
            if latest - beat.time > SILENT_S:
                return False, beat.time, False
            return True, self.posted if rank == self._rank else beat.posted, rank != self._rank

        rank = min(range(self._world_size), key=progress)
        return rank, beats[rank].note

    def absent(self, place: str) -> list[int]:
        """Put this rank's mark at a place of that name; gives the ranks whose mark is not there yet."""
        found: list[int] = []

        def mark() -> None:
            self._store.set(f"{place}/{self._rank}", "")
            found.extend(rank for rank in range(self._world_size) if not self._store.check([f"{place}/{rank}"]))

        return found if self._ask(mark) else [rank for rank in range(self._world_size) if rank != self._rank]

    def close(self) -> None:
        """Hang up."""
        atexit.unregister(self.close)
        self._closed.set()
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(ANSWER_S)

    def _ask(self, job: Callable[[], None], patience: float = ANSWER_S) -> bool:
        """Have the line's thread do something; whether it has done so in time."""
        done = threading.Event()

        def run() -> None:
            job()
            done.set()

        self._jobs.append(run)
        self._wake.set()
        limit = time.monotonic() + patience
        while self._thread.is_alive() and not done.is_set() and time.monotonic() < limit:
            done.wait(min(patience, 0.05))
        return done.is_set()

    # ------------------------------------------------------------------ the line's own thread

    def _serve(self) -> None:
        try:
            while not self._closed.is_set():
                self._wake.clear()
                while self._jobs:
                    self._jobs.popleft()()
                self._beat()
                self._wake.wait(BEAT_S)
        except RuntimeError:  # the connection broke; a slow store never raises, see FOREVER
            self._leave()

    def _beat(self) -> None:
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(Beat(self.posted, self.note, self.clock()))))
        if self.abort is None:
            self.abort = read_abort(self._store)
        if self.abort is None and self._broken is not None and time.monotonic() - self._broken[0] > BLAME_S:
            beats = self._read_beats()
            others = [rank for rank in range(self._world_size) if rank != self._rank]
            culprit = min(others, key=lambda rank: beats[rank].time)
            last = f", last seen at {beats[culprit].note}" if beats[culprit].note else ""
            self.abort = write_abort(self._store, Abort(culprit, f"its connection broke{last} ({self._broken[1]})"))

    def _read_beats(self) -> list[Beat]:
        return [read_beat(self._store, rank) for rank in range(self._world_size)]

    def _leave(self) -> None:
        """The store is gone: nobody is left who would end this process, so it ends itself."""
        if self.is_closing or self._closed.is_set():
            return
        if self.abort is None:
            self.abort = self._lost
        if not self._closed.wait(LEAVE_S):
            sys.stderr.write(f"vitrail: rank {self._rank} ends: {self._lost.reason}\n")
            sys.stderr.flush()
            os._exit(1)
