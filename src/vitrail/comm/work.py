"""Work: an operation that was begun and can be waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitrail.comm.header import read_header
from vitrail.comm.transport import Abort
from vitrail.errors import CommAborted, CommError, CommTimeout, ProtocolError

if TYPE_CHECKING:
    from vitrail.comm.trace import Recorder
    from vitrail.comm.transport import Posting, Transport


class PostedWork:
    """A posting with what is to be done once it is complete; the semantics of waiting for all backends."""

    def __init__(
        self,
        transport: Transport,
        trace: Recorder,
        posting: Posting,
        call: str,
        finish: Callable[[Posting], None],
        timeout: float,
    ):
        self._transport, self._trace, self._posting = transport, trace, posting
        self._finish, self._timeout = finish, timeout
        self._error: BaseException | None = None
        self._done = False
        self.call = call
        self.was_waited = False

    def __repr__(self) -> str:
        state = "failed" if self._error else "done" if self._done else "pending"
        return f"<{self.call}: {state}>"

    def is_completed(self) -> bool:
        """Whether ``wait`` would end at once."""
        if not self._done and self._error is None:
            self._advance()
        return self._done or self._error is not None

    def exception(self) -> BaseException | None:
        """What ``wait`` would raise, as far as is known."""
        return self._error

    def wait(self, timeout: float | None = None) -> None:
        """Block until the result can be read."""
        self.was_waited = True
        if not self.is_completed():
            limit = self._timeout if timeout is None else timeout
            self._block(self._posting.is_complete, limit)
            self._advance()
            if not self._done and self._error is None:
                self._give_up(limit)
        if self._error is not None:
            raise self._error

    def retire(self) -> None:
        """Wait until every rank has posted this operation, then give its buffers back; raises as ``wait`` does."""
        self.wait()
        if not self._posting.is_taken():
            self._block(self._posting.is_taken, self._timeout)
            abort = self._transport.aborted()
            if abort is not None:
                raise CommAborted(abort.culprit, abort.reason)
            if not self._posting.is_taken():
                self._give_up(self._timeout)
                assert self._error is not None
                raise self._error
        self._posting.release()

    def _block(self, condition: Callable[[], bool], limit: float) -> None:
        """Wait for a condition, a conflict or an abort, up to a limit in seconds."""
        with self._trace.span("wait", self.call):
            deadline = self._transport.clock() + limit
            self._transport.wait(lambda: condition() or self._posting.conflict() is not None, deadline)

    def _advance(self) -> None:
        """Take what has arrived; an abort comes before data, a conflict before data, too."""
        abort, conflict = self._transport.aborted(), self._posting.conflict()
        if abort is not None:
            self._fail(CommAborted(abort.culprit, abort.reason))
        elif conflict is not None:
            rank, header = conflict
            reason = f"rank {self._transport.rank} calls {self.call}, rank {rank} calls {read_header(header)}"
            self._fail(ProtocolError(f"ranks disagree: {reason}"), rank)
        elif self._posting.is_complete():
            try:
                self._finish(self._posting)
            except CommError as error:
                self._fail(error, self._transport.rank)
                return
            self._done = True

    def _give_up(self, limit: float) -> None:
        """A timeout: name who is behind, not who waits."""
        culprit, where = self._transport.behind()
        missing = ", ".join(map(str, self._posting.missing())) or "none"
        text = (
            f"{self.call} waited {limit:g} s on rank {self._transport.rank} for rank(s) {missing}; rank {culprit} is "
            f"behind, last seen {where or 'before its first operation'}"
        )
        self._fail(CommTimeout(text), culprit)

    def _fail(self, error: BaseException, culprit: int | None = None) -> None:
        self._error = error
        if culprit is not None:
            self._transport.abort(Abort(culprit, str(error)))
