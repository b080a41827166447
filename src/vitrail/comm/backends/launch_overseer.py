"""What the parent of rank processes does: notice a death or a standstill, tell the others, end and reap them all."""

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
LOOK_S = 0.1  # between two looks for ranks that are stopped
GRACE_S = 1.0  # of ranks, to end by themselves
STEP_S = 0.25  # between two ways of ending a rank, each less friendly
DONE_S = 5.0  # for ranks whose work is done to end
INTERRUPTED = 130  # what shells call a program that Ctrl-C ended


class Child(Protocol):
    """A rank's process."""

    @property
    def pid(self) -> int | None:
        """Its number."""

    @property
    def is_done(self) -> bool:
        """Whether its work is done and nobody needs it any more."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None as long as it runs. Reaps it."""

    def let_go(self) -> None:
        """Have it end by itself at once, if it listens."""

    def terminate(self) -> None:
        """SIGTERM."""

    def kill(self) -> None:
        """SIGKILL, which ends also what is stopped."""


@frozen
class Ending:
    """How a run ended that did not end well.

    Attributes:
        culprit: The rank where it began.
        reason: What happened there.
        note: Where that rank was last; may be empty.
        from_rank: Whether a rank said so itself.
    """

    culprit: int
    reason: str
    note: str
    from_rank: bool


@define
class Overseer:
    """Watches over the ranks' processes.

    Attributes:
        children: By rank.
        words: Of the run's store, where the ranks write them.
        grace: Seconds that the others have to end by themselves after one has died.
        timeout: Seconds that a rank may be stopped, by SIGSTOP or a terminal.
        codes: Exit codes of those that have ended, in the order in which they did.
    """

    children: Sequence[Child]
    words: Words
    grace: float = GRACE_S
    timeout: float = math.inf
    codes: dict[int, int] = field(factory=dict)
    _announced: Abort | None = None
    _ended_here: set[int] = field(factory=set)
    _last_look: float = -math.inf
    _stopped: dict[int, float] = field(factory=dict)  # since when
    _done: float = math.inf  # since when all are

    def poll(self) -> list[int]:
        """The ranks that still run."""
        for rank, child in enumerate(self.children):
            if rank not in self.codes:
                code = child.poll()
                if code is not None:
                    self.codes[rank] = code
        return [rank for rank in range(len(self.children)) if rank not in self.codes]

    def has_ended_itself(self, rank: int) -> bool:
        """Whether a rank has ended without being made to from here."""
        return rank in self.codes and rank not in self._ended_here

    def failed(self) -> list[int]:
        """The ranks that ended badly before their work was done, in the order in which they did."""
        return [rank for rank, code in self.codes.items() if code != 0 and not self.children[rank].is_done]

    def late(self) -> dict[int, str]:
        """The ranks that ended badly when their work was done, and how."""
        failed = self.failed()
        late = (rank for rank, code in sorted(self.codes.items()) if code != 0 and rank not in failed)
        return {rank: how_it_ended(self.codes[rank]) for rank in late if self.has_ended_itself(rank)}

    def watch(self, tick: Callable[[], bool] = lambda: True) -> Ending | None:
        """Wait for all ranks; if one fails, end the others, too. None if all ended well.

        Args:
            tick: Called all the while; the ranks are ended as soon as it returns False.
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
        """Revoke the run for the others, unless it already is."""
        mine = Abort(culprit, reason)
        if write_abort(self.words, mine) == mine:
            self._announced = mine

    def end(self, tick: Callable[[], bool] = lambda: True, is_well: Callable[[], bool] = lambda: False) -> bool:
        """Give the ranks their grace, ask them to end, then SIGTERM, then SIGKILL; reaps them all.

        Args:
            tick: Called all the while; there is no grace once it returns False.
            is_well: Whether the ranks need not end, after all, as those that go on have what they need.

        Returns:
            Whether they were ended.
        """
        for rank in self.poll():
            if is_stopped(self.children[rank].pid):  # it cannot end by itself
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
        """Whether a rank has been stopped for too long; the run is then revoked."""
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
        """Whether all work is done and yet some rank does not end."""
        is_done = all(child.is_done or self.codes.get(rank) == 0 for rank, child in enumerate(self.children))
        self._done = min(self._done, time.monotonic()) if is_done else math.inf
        return time.monotonic() - self._done > DONE_S

    def ending(self) -> Ending | None:
        """Where it began: where the ranks say, else at rank 0 if it failed alike, else at the first that failed."""
        abort = read_abort(self.words)
        if abort is None:
            return None
        culprit, reason = abort.culprit, abort.reason
        if not 0 <= culprit < len(self.children):  # no rank of ours has written this
            culprit = 0
        if abort == self._announced and self.has_ended_itself(0) and self.codes[0] == self.codes.get(culprit):
            culprit = 0  # e.g. a wrong option, which every rank refuses
        note = read_beats(self.words, len(self.children))[culprit].note
        return Ending(culprit, reason, note, abort != self._announced)


def is_stopped(pid: int | None) -> bool:
    """Whether a process was stopped, by SIGSTOP or a terminal; False where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] == "T"


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code == INTERRUPTED:
        return "it was interrupted by SIGINT"
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (perhaps for want of memory)" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
