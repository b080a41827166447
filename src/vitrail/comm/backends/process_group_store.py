"""A rank's line to the run's store: aborts, heartbeats, and which rank is behind.

The line has a thread of its own, so that a store that does not answer never blocks a rank for longer than intended.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import asdict, frozen

from vitrail.comm.transport import Abort

if TYPE_CHECKING:
    from vitrail.comm.backends.key_store import Words

BEAT_S = 0.075  # between two heartbeats
BLAME_S = 1.0  # time after a broken connection for another process to report which rank died
SILENT_S = 1.0  # age of a heartbeat after which its rank counts as stopped or dead
ANSWER_S = 1.0  # timeout of the store's answer
NOTE_S = 0.05  # timeout of writing a note
LEAVE_S = 1.0  # for the rank to end by itself after the store was lost
LOST = "rank 0 is gone, and with it the run's store"
SHOWN = 80  # characters shown of a value that cannot be parsed


@frozen
class Beat:
    """A rank's heartbeat.

    Attributes:
        posted: Number of operations that it has posted.
        note: Its last note.
        time: Time of the heartbeat by the common clock.
    """

    posted: int = -1
    note: str = ""
    time: float = float("-inf")


def read_abort(words: Words) -> Abort | None:
    """Return the abort in the store, if any; a value that cannot be parsed counts as one."""
    return understood(words.get("abort"))


def understood(word: bytes | None) -> Abort | None:
    """Parse the value of an abort; None if there is none."""
    if not word:
        return None
    try:
        abort = Abort(**json.loads(word))
        if isinstance(abort.culprit, int) and isinstance(abort.reason, str):
            return abort
    except (ValueError, TypeError):  # reported below
        pass
    text = word[:SHOWN].decode(errors="replace")
    return Abort(0, f"the run's store has an abort that no rank of this version wrote: {text!r}")


def write_abort(words: Words, abort: Abort) -> Abort:
    """Revoke the run; return the abort that counts, which is the first."""
    return understood(words.swap("abort", b"", json.dumps(asdict(abort)).encode())) or abort


def read_beats(words: Words, world_size: int) -> list[Beat]:
    """Return the last heartbeats of all ranks."""
    return [_beat(word) for word in words.ask([words.getting(f"beat/{rank}") for rank in range(world_size)])]


def _beat(word: bytes | None) -> Beat:
    try:
        beat = Beat(**json.loads(word or b"{}"))
        return Beat(int(beat.posted), str(beat.note), float(beat.time))
    except (ValueError, TypeError):  # not a heartbeat
        return Beat()


class StoreLine:
    """The line of one rank to the run's store.

    Args:
        words: Keys of the run's store.
        rank: This rank.
        world_size: Number of ranks.
        lost: The abort if the store is lost.
    """

    def __init__(self, words: Words, rank: int, world_size: int, lost: Abort):
        self._words, self._rank, self._world_size, self._lost = words, rank, world_size, lost
        self.clock: Callable[[], float] = time.monotonic
        self.abort: Abort | None = None
        self.posted = 0
        self.note = ""
        self.is_closing = False  # after a clean end the store may close
        self._broken: tuple[float, str] | None = None
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="store-line", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # the thread must not use the store when the interpreter ends

    # ------------------------------------------------------------------ from the rank's thread, or any other

    def tell(self, note: str) -> None:
        """Record this rank's position, at once, so that it is known even if the process dies."""
        self.note = note
        self._ask(self._beat, NOTE_S)

    def revoke(self, abort: Abort) -> bool:
        """Abort the run; of all ranks' aborts the first counts. Return whether the store has one."""

        def write() -> None:
            self.abort = write_abort(self._words, abort)

        if self.abort is not None or self._ask(write):
            return True
        self.abort = self.abort or abort  # the store does not answer: the abort is known here only
        return False

    def broken(self, error: str) -> None:
        """Record that a connection to a peer broke; ends the run after ``BLAME_S`` unless it has ended."""
        if self._broken is None:
            self._broken = time.monotonic(), error.strip().partition("\n")[0]

    def beats(self) -> list[Beat]:
        """Return the last heartbeats of all ranks; empty ones if the store does not answer."""
        found: list[Beat] = []

        def read() -> None:
            found.extend(read_beats(self._words, self._world_size))

        return found if self._ask(read) else [Beat() for _ in range(self._world_size)]

    def behind(self) -> tuple[int, str]:
        """Return the rank that is behind, and its last note.

        A rank without recent heartbeat, which is stopped or dead; else the one that has posted least, in a tie this
        rank.
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

    def absent(self, place: str) -> list[int] | None:
        """Mark this rank as present at a named place; return the ranks that are not marked yet.

        None if the store does not answer.
        """
        found: list[int] = []

        def mark() -> None:
            marks = [self._words.getting(f"{place}/{rank}") for rank in range(self._world_size)]
            answers = self._words.ask([self._words.setting(f"{place}/{self._rank}", ""), *marks])[1:]
            found.extend(rank for rank, answer in enumerate(answers) if answer is None)

        return found if self._ask(mark) else None

    def close(self) -> None:
        """Stop the line's thread."""
        atexit.unregister(self.close)
        self._closed.set()
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(ANSWER_S)

    def _ask(self, job: Callable[[], None], patience: float = ANSWER_S) -> bool:
        """Have the line's thread run a job; return whether it was done in time."""
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
        except OSError:  # the store is gone; a slow or stopped one raises nothing
            self._leave()
        except Exception as error:  # the rank would no longer learn of aborts
            self.abort = self.abort or Abort(self._rank, f"its line to the run's store broke: {error!r}")

    def _beat(self) -> None:
        own = json.dumps(asdict(Beat(self.posted, self.note, self.clock())))
        beat = self._words.setting(f"beat/{self._rank}", own)
        abort = understood(self._words.ask([beat, self._words.getting("abort")])[1])
        self.abort = self.abort or abort
        if self.abort is None and self._broken is not None and time.monotonic() - self._broken[0] > BLAME_S:
            beats = read_beats(self._words, self._world_size)
            others = [rank for rank in range(self._world_size) if rank != self._rank]
            culprit = min(others, key=lambda rank: beats[rank].time)
            last = f", last seen at {beats[culprit].note}" if beats[culprit].note else ""
            self.abort = write_abort(self._words, Abort(culprit, f"its connection broke{last} ({self._broken[1]})"))

    def _leave(self) -> None:
        """End this process after the store was lost, as no other process would end it."""
        if self.is_closing or self._closed.is_set():
            return
        if self.abort is None:
            self.abort = self._lost
        if not self._closed.wait(LEAVE_S):
            sys.stderr.write(f"vitrail: rank {self._rank} ends: {self._lost.reason}\n")
            sys.stderr.flush()
            os._exit(1)
