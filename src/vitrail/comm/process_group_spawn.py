"""Ranks as spawned processes of this one, which keeps the store and watches over them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from attrs import define, evolve

from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.environment import RankEnvironment
from vitrail.comm.gloo import namespace
from vitrail.comm.guard import guarded
from vitrail.comm.launch_overseer import Ending, Overseer
from vitrail.comm.outcome import first_cause
from vitrail.comm.process_group_store import LOOPBACK, connect, host, local_listener, within
from vitrail.comm.transport import Abort
from vitrail.errors import CommAborted

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

T = TypeVar("T")
GRACE_S = 1.0
CONNECT_S = 10.0


class Joins(Protocol):
    """A backend of processes."""

    def join(self, environment: RankEnvironment, run_id: str) -> RankCommunicator:
        """The communicator of a process."""


@define
class SpawnedRank:
    """A rank's process and the pipe through which its result comes: (whether it went well, result or error).

    It comes as bytes: a tensor sent as multiprocessing does it lies in memory that ends with the rank.
    """

    process: BaseProcess
    pipe: Connection
    answer: tuple[bool, Any] | None = None

    def poll(self) -> int | None:
        """The exit code, once what the rank sent has been read."""
        code = self.process.exitcode
        for content in self._received():
            self.answer = pickle.loads(content)  # noqa: S301 - from our own child
        return code

    def _received(self) -> Iterator[bytes]:
        """What has come through the pipe, until it is empty or closed."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                yield self.pipe.recv_bytes()

    @property
    def pid(self) -> int | None:
        """The process's number."""
        return self.process.pid

    def reap(self) -> None:
        """Give the ended process and its pipe back."""
        self.process.join()
        self.process.close()
        self.pipe.close()

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def run_spawned(
    backend: Joins,
    world_size: int,
    program: Callable[[RankCommunicator], T],
    run_id: str,
    method: Literal["spawn", "forkserver"] = "spawn",
) -> list[T]:
    """Run a program in a process for every rank and give the results by rank.

    Args:
        backend: Joined by every process.
        world_size: Number of ranks.
        program: Can be pickled.
        run_id: Of the run.
        method: How processes are started.

    Raises:
        BaseException: What the culprit raised, with its traceback as a note.
        CommAborted: If the culprit's process died.
    """
    listener = local_listener()
    port = listener.getsockname()[1]
    server = host(port, listener)
    first = RankEnvironment(0, world_size, 0, LOOPBACK, port, store_is_hosted=True)
    store = within(connect(LOOPBACK, port, CONNECT_S), namespace(first, 0))
    children: list[SpawnedRank] = []
    overseer = Overseer(children, store, GRACE_S)
    try:
        for rank in range(world_size):
            arguments = (backend, evolve(first, rank=rank, local_rank=rank), program, run_id)
            children.append(_start(method, arguments))
        ending = overseer.watch()
    except BaseException as error:
        overseer.tell(0, f"{type(error).__name__} in the process that started the ranks")
        overseer.end()
        raise
    finally:
        for child in children:
            child.reap()
        del store, server
    if ending is not None:
        raise _cause(children, ending)
    return [_result(rank, child.answer) for rank, child in enumerate(children)]


def _result(rank: int, answer: tuple[bool, Any] | None) -> Any:
    if answer is None:
        raise CommAborted(rank, "its process ended well and gave no result")
    return answer[1]


def _start(method: str, arguments: tuple[Any, ...]) -> SpawnedRank:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_rank_main, args=(theirs, *arguments))
    with _sleeping_threads():
        process.start()
    theirs.close()
    return SpawnedRank(process, ours)


@contextmanager
def _sleeping_threads() -> Iterator[None]:
    """Have processes that start here let their threads sleep while these wait, being more than the cores.

    A rank's operators have as many threads as in this process: their number reaches the last bits.
    """
    name = "OMP_WAIT_POLICY"
    if name in os.environ:
        yield
        return
    os.environ[name] = "passive"
    try:
        yield
    finally:
        del os.environ[name]


def _rank_main(
    pipe: Connection,
    backend: Joins,
    environment: RankEnvironment,
    program: Callable[[RankCommunicator], Any],
    run_id: str,
) -> None:
    """The life of a spawned rank; after a failure it ends at once, since torch's threads may hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends the ranks
    try:
        communicator = backend.join(environment, run_id)
        pipe.send_bytes(pickle.dumps((True, guarded(communicator, program))))
    except BaseException as error:
        with suppress(OSError):
            pipe.send_bytes(pickle.dumps((False, portable(error))))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def portable(error: BaseException) -> BaseException | tuple[int, str]:
    """An error that can be sent, with its traceback as a note; an abort as its culprit and reason."""
    if isinstance(error, CommAborted):
        return error.culprit, error.reason
    told = "".join(traceback.format_exception(error)).rstrip()
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        if type(copy) is type(error) and str(copy) == str(error):
            copy.add_note(f"On its rank:\n{told}")
            return copy
    except Exception:  # noqa: S110 - an error that does not survive is sent as text
        pass
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    plain.add_note(f"On its rank:\n{told}")
    return plain


def _cause(children: list[SpawnedRank], ending: Ending) -> BaseException:
    """The error that began it, as one to raise."""
    errors: dict[int, BaseException] = {}
    for rank, child in enumerate(children):
        if child.answer is not None and not child.answer[0]:
            error = child.answer[1]
            errors[rank] = CommAborted(*error) if isinstance(error, tuple) else error
    where = f", last seen at {ending.note}" if ending.note and not ending.from_rank else ""
    died = CommAborted(ending.culprit, ending.reason + where)
    own = errors.get(ending.culprit)
    if own is None or isinstance(own, CommAborted):
        others = {rank: error for rank, error in errors.items() if not isinstance(error, CommAborted)}
        return first_cause(others, Abort(ending.culprit, ending.reason)) if others and ending.from_rank else died
    return own
