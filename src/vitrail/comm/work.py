"""Pending operations of a rank, and the semantics of waiting for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from vitrail.comm.message_header import read_header
from vitrail.comm.transport import Abort
from vitrail.errors import CommAborted, CommTimeout, ProtocolError

if TYPE_CHECKING:
    from vitrail.comm.protocol import Work
    from vitrail.comm.trace.recording import Recorder
    from vitrail.comm.transport import Posting, Transport


class Ticket:
    """The call of a pending operation, and whether the caller ever queried it or waited for it."""

    __slots__ = ("call", "was_seen")

    def __init__(self, call: str):
        self.call, self.was_seen = call, False


@frozen(eq=False)
class Awaited:
    """A condition to wait for, ended also by a conflict; its text names the call and the awaited ranks."""

    condition: Callable[[], bool]
    posting: Posting
    call: str

    def __call__(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.condition() or self.posting.conflict() is not None

    def __str__(self) -> str:
        return f"{self.call} of rank(s) {', '.join(map(str, self.posting.missing())) or 'any'}"


class PostedWork:
    """A posting with the function that reads it once it is complete; waiting is the same for all backends."""

    def __init__(
        self,
        transport: Transport,
        trace: Recorder,
        posting: Posting,
        call: str,
        finish: Callable[[Posting], None],
        timeout: float,
        header: bytes = b"",
    ):
        self._transport, self._trace, self._posting = transport, trace, posting
        self._finish: Callable[[Posting], None] | None = finish
        self._timeout, self._header = timeout, header
        self._thread = threading.get_ident()
        self._error: BaseException | None = None
        self._done = False
        self.call, self.ticket = call, Ticket(call)

    def __repr__(self) -> str:
        state = "failed" if self._error else "done" if self._done else "pending"
        return f"<{self.call}: {state}>"

    def is_completed(self) -> bool:
        """Whether ``wait`` would end at once."""
        if not self.poll():
            return False
        self.ticket.was_seen = True
        return True

    def exception(self) -> BaseException | None:
        """Return what ``wait`` would raise, as far as is known."""
        self.poll()
        return self._error

    def wait(self, timeout: float | None = None) -> None:
        """Block until the result can be read; see ``Work.wait``."""
        self.ticket.was_seen = True
        self.settle(timeout)

    def wait_or(self, others: Sequence[Work], timeout: float | None = None) -> None:
        """Block until the result can be read, or all of some others; see ``Work.wait_or``."""
        self.ticket.was_seen = True
        every = [work for work in others if isinstance(work, PostedWork)]

        def are_here() -> bool:
            return bool(every) and all(work.is_here() for work in every)

        if not self.poll() and not are_here():
            limit = self._timeout if timeout is None else timeout
            self._block(lambda: self._posting.is_complete() or are_here(), limit)
            if not self.poll() and not are_here():
                self._give_up(limit, blames_source=True)
        if self._error is not None:
            raise self._error

    def is_here(self) -> bool:
        """Whether the work has ended or everything that it awaits has arrived; reads nothing, for any thread."""
        return self._done or self._error is not None or self._posting.is_complete()

    def poll(self) -> bool:
        """Read what has arrived and return whether the work has ended; does not count as seen by the caller.

        Raises:
            ProtocolError: From another thread than the one that began the work.
        """
        if not self._done and self._error is None:
            if threading.get_ident() != self._thread:
                raise ProtocolError(f"{self.call}: looked at from another thread than the one that began it")
            self._advance()
        return self._done or self._error is not None

    def settle(self, timeout: float | None = None) -> None:
        """As ``wait``, but does not count as seen by the caller.

        Raises:
            BaseException: As ``Work.wait``, or what ``finish`` raised.
        """
        if not self.poll():
            limit = self._timeout if timeout is None else timeout
            self._block(self._posting.is_complete, limit)
            if not self.poll():
                self._give_up(limit)
        if self._error is not None:
            raise self._error

    def retire(self) -> None:
        """Wait until every rank has posted this operation, then release its buffers; raises as ``wait`` does.

        Raises:
            CommAborted: If the run was revoked.
        """
        self.settle()
        if not self._posting.is_taken():
            self._block(self._posting.is_taken, self._timeout)
            abort = self._transport.aborted()
            if abort is not None:
                raise CommAborted(abort.culprit, abort.reason)
            self._refuse_conflict()
            if self._error is None and not self._posting.is_taken():
                self._give_up(self._timeout)
            if self._error is not None:
                raise self._error
        self._posting.release()

    def finish(self) -> None:
        """Wait for an operation that every rank is known to have posted, then release its buffers."""
        self.settle()
        self._posting.release()

    def _block(self, condition: Callable[[], bool], limit: float) -> None:
        """Wait for a condition, a conflict or an abort, at most ``limit`` seconds."""
        with self._trace.span("wait", self.call):
            deadline = self._transport.clock() + limit
            self._transport.wait(Awaited(condition, self._posting, self.call), deadline)

    def _advance(self) -> None:
        """Read what has arrived; an abort takes precedence over a conflict, and a conflict over data."""
        abort = self._transport.aborted()
        if abort is not None:
            self._fail(CommAborted(abort.culprit, abort.reason))
            return
        is_complete = self._posting.is_complete()  # before the conflict: the header that completes it may disagree
        self._refuse_conflict()
        if self._error is None and is_complete:
            assert self._finish is not None
            try:
                self._finish(self._posting)
            except Exception as error:
                self._fail(error, self._transport.rank)
                return
            self._done = True
            self._finish = None  # releases the caller's tensors

    def _refuse_conflict(self) -> None:
        conflict = self._posting.conflict()
        if conflict is not None:
            (culprit, header), rank = conflict, self._transport.rank
            other = "another rank" if culprit == rank else f"rank {culprit}"
            own, theirs = read_header(self._header), read_header(header)
            hidden = " (they differ in what is too long to be shown)" if own == theirs else ""
            reason = f"rank {rank} calls {own}, {other} calls {theirs}{hidden}"
            self._fail(ProtocolError(f"ranks disagree: {reason}"), culprit)

    def _give_up(self, limit: float, blames_source: bool = False) -> None:
        """Fail by a timeout; blame the rank that is behind or, if none is, the one whose message is missing.

        Args:
            limit: Seconds that were waited.
            blames_source: Whether the rank whose message is missing waits for no other, so that it is to blame.
        """
        missing = self._posting.missing()
        culprit, where = self._transport.behind()
        state = f"is behind, last seen {where or 'before its first operation'}"
        if culprit == self._transport.rank and missing:
            culprit, state = missing[0], "has posted it, but its message did not arrive"
        elif blames_source and missing and culprit != missing[0]:
            culprit, state = missing[0], "waits for no other, and its message did not arrive"
        waited = f"for rank(s) {', '.join(map(str, missing))}" if missing else "to be posted by all"
        text = f"{self.call} waited {limit:g} s on rank {self._transport.rank} {waited}; rank {culprit} {state}"
        self._fail(CommTimeout(text), culprit)

    def _fail(self, error: BaseException, culprit: int | None = None) -> None:
        self._error = error
        self._finish = None
        if culprit is not None:
            self._transport.abort(Abort(culprit, str(error)))
