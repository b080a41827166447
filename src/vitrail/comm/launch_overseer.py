"""What the parent of rank processes does: notice a death, tell the others, end and reap them all."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import define, field, frozen

from vitrail.comm.process_group_store import read_abort, read_beat, write_abort
from vitrail.comm.transport import Abort

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

POLL_S = 0.02
KILL_S = 0.7  # after SIGTERM
INTERRUPTED = 130  # what shells call a program that Ctrl-C ended


class Child(Protocol):
    """A rank's process."""

    @property
    def pid(self) -> int | None:
        """Its number."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None as long as it runs. Reaps it."""

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
        store: A client of the run's store that nobody else uses, with the ranks' namespace.
        grace: Seconds that the others have to end by themselves after one has died.
        codes: Exit codes of those that have ended, in the order in which they did.
        ended_themselves: Those of them that no signal from here has ended.
    """

    children: Sequence[Child]
    store: Store
    grace: float
    codes: dict[int, int] = field(factory=dict)
    ended_themselves: set[int] = field(factory=set)
    _told: Abort | None = None
    _signalled: bool = False

    def poll(self) -> list[int]:
        """The ranks that still run."""
        for rank, child in enumerate(self.children):
            if rank not in self.codes:
                code = child.poll()
                if code is not None:
                    self.codes[rank] = code
                    if not self._signalled:
                        self.ended_themselves.add(rank)
        return [rank for rank in range(len(self.children)) if rank not in self.codes]

    def failed(self) -> list[int]:
        """The ranks that ended badly, in the order in which they did."""
        return [rank for rank, code in self.codes.items() if code != 0]

    def watch(self, tick: Callable[[], bool] = lambda: True) -> Ending | None:
        """Wait for all ranks; if one fails, end the others, too. None if all ended well.

        Args:
            tick: Called all the while; the ranks are ended as soon as it returns False.
        """
        while self.poll() and not self.failed() and tick():
            time.sleep(POLL_S)
        if not self.failed() and not self.poll():
            return None
        if self.failed():
            self.tell(self.failed()[0], how_it_ended(self.codes[self.failed()[0]]))
        self.end(tick)
        return self.ending()

    def tell(self, culprit: int, reason: str) -> None:
        """Revoke the run for the others, unless it already is."""
        mine = Abort(culprit, reason)
        if write_abort(self.store, mine) == mine:
            self._told = mine

    def end(self, tick: Callable[[], bool] = lambda: True) -> None:
        """Give the ranks their grace, then SIGTERM, then SIGKILL; reaps them all."""
        self._signalled = True
        for rank in self.poll():
            if is_stopped(self.children[rank].pid):
                self.children[rank].kill()  # it cannot end by itself
        self._signalled = False
        self._wait(self.grace, tick)
        self._signalled = True
        for rank in self.poll():
            self.children[rank].terminate()
        self._wait(KILL_S)
        for rank in self.poll():
            self.children[rank].kill()
        while self.poll():
            time.sleep(POLL_S)

    def _wait(self, seconds: float, tick: Callable[[], bool] = lambda: True) -> None:
        limit = time.monotonic() + seconds
        while self.poll() and time.monotonic() < limit and tick():
            time.sleep(POLL_S)

    def ending(self) -> Ending | None:
        """Where it began: where the ranks say, else at rank 0 if it failed alike, else at the first that failed."""
        abort = read_abort(self.store)
        if abort is None:
            return None
        culprit, reason = abort.culprit, abort.reason
        if abort == self._told and 0 in self.ended_themselves and self.codes[0] == self.codes.get(culprit):
            culprit = 0  # e.g. a wrong option, which every rank refuses
        return Ending(culprit, reason, read_beat(self.store, culprit).note, abort != self._told)


def is_stopped(pid: int | None) -> bool:
    """Whether a process was stopped, by SIGSTOP or a terminal; False where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] == "T"


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (perhaps for want of memory)" if name == "SIGKILL" else ""
    return f"it was ended by {name}{hint}"
