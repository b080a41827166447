"""Supervision of rank processes: detect a death or a standstill, inform the others, end and reap all of them."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import define, field, frozen

from vitrail.comm.backends.process_group_store import read_abort, read_beats, write_abort
from vitrail.comm.transport import Abort

if TYPE_CHECKING:
    from vitrail.comm.backends.key_store import Words

POLL_S = 0.02
LOOK_S = 0.1  # between two checks for stopped ranks
GRACE_S = 1.0  # for ranks to end by themselves
STEP_S = 0.25  # between two escalating ways of ending a rank
DONE_S = 5.0  # for ranks to end once their work is done
INTERRUPTED = 130  # exit code of a program ended by Ctrl-C


class Child(Protocol):
    """The process of a rank."""

    @property
    def pid(self) -> int | None:
        """Process id."""

    @property
    def is_done(self) -> bool:
        """Whether its work is done and no other rank needs it."""

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs. Reaps it."""

    def let_go(self) -> None:
        """Request that it ends by itself, if it listens."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL, which also ends a stopped process."""


@frozen
class Ending:
    """How a failed run ended.

    Attributes:
        culprit: Rank that failed first.
        reason: What happened there.
        note: Last position of that rank; may be empty.
        from_rank: Whether a rank reported it itself.
    """

    culprit: int
    reason: str
    note: str
    from_rank: bool


@define
class Overseer:
    """Supervise the ranks' processes.

    Attributes:
        children: Processes by rank.
        words: Keys of the run's store that the ranks write.
        grace: Seconds for the others to end by themselves after one has died.
        timeout: Seconds for which a rank may be stopped, by SIGSTOP or a terminal.
        codes: Exit codes of ended ranks, in the order in which they ended.
    """

    children: Sequence[Child]
    words: Words
    grace: float = GRACE_S
    timeout: float = math.inf
    codes: dict[int, int] = field(factory=dict)
    _announced: Abort | None = None
    _ended_here: set[int] = field(factory=set)
    _last_look: float = -math.inf
    _stopped: dict[int, float] = field(factory=dict)  # time since when
    _done: float = math.inf  # time since when all are done

    def poll(self) -> list[int]:
        """Return the ranks that still run."""
        for rank, child in enumerate(self.children):
            if rank not in self.codes:
                code = child.poll()
                if code is not None:
                    self.codes[rank] = code
        return [rank for rank in range(len(self.children)) if rank not in self.codes]

    def has_ended_itself(self, rank: int) -> bool:
        """Whether a rank has ended without being ended by the overseer."""
        return rank in self.codes and rank not in self._ended_here

    def failed(self) -> list[int]:
        """Return the ranks that failed before their work was done, in the order in which they did."""
        return [rank for rank, code in self.codes.items() if code != 0 and not self.children[rank].is_done]

    def late(self) -> dict[int, str]:
        """Return the ranks that failed after their work was done, and how."""
        failed = self.failed()
        late = (rank for rank, code in sorted(self.codes.items()) if code != 0 and rank not in failed)
        return {rank: how_it_ended(self.codes[rank]) for rank in late if self.has_ended_itself(rank)}

    def watch(self, tick: Callable[[], bool] = lambda: True) -> Ending | None:
        """Wait for all ranks; if one fails, end the others. None if all succeeded.

        Args:
            tick: Called repeatedly; the ranks are ended as soon as it returns False.
        """
        while True:
            while self.poll() and not self.failed() and not self._stands_still() and not self._lingers() and tick():
                time.sleep(POLL_S)
            failed = self.failed()
            if failed:
                self.tell(failed[0], how_it_ended(self.codes[failed[0]]))
                if self.end(tick, lambda: not self.failed()):
                    return self.ending()
            elif not self.poll():
                return None
            else:
                is_done = self._lingers()
                self.end(tick)
                return None if is_done else self.ending()

    def tell(self, culprit: int, reason: str) -> None:
        """Revoke the run for the other ranks, unless it is revoked already."""
        mine = Abort(culprit, reason)
        if write_abort(self.words, mine) == mine:
            self._announced = mine

    def end(self, tick: Callable[[], bool] = lambda: True, is_well: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the ranks to end, then request it, then send SIGTERM, then SIGKILL; reap them all.

        Args:
            tick: Called repeatedly; the waiting ends once it returns False.
            is_well: Whether the ranks need not end after all, since the remaining ones have what they need.

        Returns:
            Whether they were ended.
        """
        for rank in self.poll():
            if is_stopped(self.children[rank].pid):  # a stopped process cannot end by itself
                self.children[rank].kill()
                self._ended_here.add(rank)
        self._wait(self.grace, lambda: tick() and not is_well())
        if is_well():
            return False
        self._ended_here.update(self.poll())
        for step in ("let_go", "terminate", "kill"):
            for rank in self.poll():
                getattr(self.children[rank], step)()
            self._wait(STEP_S)
        while self.poll():
            time.sleep(POLL_S)
        return True

    def _wait(self, seconds: float, tick: Callable[[], bool] = lambda: True) -> None:
        limit = time.monotonic() + seconds
        while self.poll() and time.monotonic() < limit and tick():
            time.sleep(POLL_S)

    def _stands_still(self) -> bool:
        """Whether a rank has been stopped for too long; if so, revoke the run."""
        now = time.monotonic()
        if now - self._last_look < LOOK_S:
            return False
        self._last_look = now
        stopped = [rank for rank in self.poll() if is_stopped(self.children[rank].pid)]
        self._stopped = {rank: self._stopped.get(rank, now) for rank in stopped}
        for rank, since in self._stopped.items():
            if now - since >= self.timeout and not self.children[rank].is_done:
                self.tell(rank, f"it was stopped, and did not go on within {self.timeout:g} s")
                return True
        return False

    def _lingers(self) -> bool:
        """Whether all work is done but a rank has not ended for ``DONE_S`` seconds."""
        is_done = all(child.is_done or self.codes.get(rank) == 0 for rank, child in enumerate(self.children))
        self._done = min(self._done, time.monotonic()) if is_done else math.inf
        return time.monotonic() - self._done > DONE_S

    def ending(self) -> Ending | None:
        """Return the origin: as a rank reported it, else rank 0 if it failed alike, else the first that failed."""
        abort = read_abort(self.words)
        if abort is None:
            return None
        culprit, reason = abort.culprit, abort.reason
        if not 0 <= culprit < len(self.children):  # not written by a rank of this run
            culprit = 0
        if abort == self._announced and self.has_ended_itself(0) and self.codes[0] == self.codes.get(culprit):
            culprit = 0  # e.g. a wrong option, refused by every rank
        note = read_beats(self.words, len(self.children))[culprit].note
        return Ending(culprit, reason, note, abort != self._announced)


def is_stopped(pid: int | None) -> bool:
    """Whether a process is stopped, by SIGSTOP or a terminal; False where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] == "T"


def how_it_ended(code: int) -> str:
    """Describe an exit code."""
    if code == INTERRUPTED:
        return "it was interrupted by SIGINT"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (perhaps because memory ran out)" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
