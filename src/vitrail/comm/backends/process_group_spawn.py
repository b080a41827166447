"""Ranks as spawned child processes of this one, which hosts the store and supervises them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from attrs import define, evolve

from vitrail.comm.backends.key_store import LOOPBACK, StoreServer, listener_at, process_name
from vitrail.comm.backends.launch_overseer import Ending, Overseer
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.environment import RankEnvironment, namespace
from vitrail.comm.lifeline import hold_to_parent
from vitrail.comm.outcome import first_cause, guarded
from vitrail.comm.transport import Abort
from vitrail.errors import CommAborted, CommError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

T = TypeVar("T")
_OF_RANKS = {"OMP_WAIT_POLICY": "passive", "PYTHONSAFEPATH": "rank"}


class Joins(Protocol):
    """A backend whose ranks are processes."""

    @property
    def timeout(self) -> float:
        """Timeout of one wait, seconds."""

    def join(self, environment: RankEnvironment, run_id: str) -> RankCommunicator:
        """Return the communicator of this process."""


@define
class SpawnedRank:
    """A rank's process and the pipe for its answer: (whether it succeeded, result or error).

    The answer is sent as bytes: a tensor sent by multiprocessing is in memory that is freed with the rank.
    """

    process: BaseProcess
    pipe: Connection
    answer: tuple[bool, Any] | None = None

    def poll(self) -> int | None:
        """Return the exit code, after reading what the rank sent; None while it runs."""
        code = self.process.exitcode
        for content in self._received():
            self.answer = pickle.loads(content)  # noqa: S301 - from a child process
        return code

    def _received(self) -> Iterator[bytes]:
        """Yield what the pipe holds, until it is empty or closed."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                yield self.pipe.recv_bytes()

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self.process.pid

    @property
    def is_done(self) -> bool:
        """Whether its result has arrived."""
        return self.answer is not None and self.answer[0]

    def let_go(self) -> None:
        """Send SIGTERM: there is no output to complete."""
        self.terminate()

    def reap(self) -> None:
        """Release the ended process and its pipe."""
        self.process.join()
        self.process.close()
        self.pipe.close()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()


def run_spawned(
    backend: Joins,
    world_size: int,
    program: Callable[[RankCommunicator], T],
    run_id: str,
    method: Literal["spawn", "forkserver"] = "spawn",
) -> list[T]:
    """Run a program in one process per rank; return the results in the order of ranks.

    Args:
        backend: Joined by every process.
        world_size: Number of ranks.
        program: Must be picklable.
        run_id: Id of the run.
        method: Start method of the processes.

    Raises:
        BaseException: What the program raised on the rank that failed first, with its traceback as a note.
        CommAborted: If that rank's process died.
        CommError: If processes cannot be started from here, or the program cannot be pickled.
    """
    _check_startable(program)
    secret, name = secrets.token_hex(16), "ranks of a Python program"
    server = StoreServer(listener_at(), secret, process_name(name))
    first = RankEnvironment(0, world_size, 0, LOOPBACK, server.port, store_is_hosted=True, secret=secret, name=name)
    children: list[SpawnedRank] = []
    overseer = Overseer(children, server.words.within(namespace(first, 0)), timeout=backend.timeout)
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
        server.close()
    if ending is not None:
        raise _cause(children, ending)
    return [_result(rank, child.answer) for rank, child in enumerate(children)]


def _check_startable(program: object) -> None:
    """Refuse what would fail in every new process with an unclear error.

    A new process imports the main module again and looks up the program there by name.
    """
    own: Any = multiprocessing.current_process()
    if getattr(own, "_inheriting", False):
        raise CommError(
            "ranks are started while the main module is imported, so each would start ranks again; put the call below "
            'if __name__ == "__main__":'
        )
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is not None and not Path(main).exists():
        raise CommError(
            f"ranks import the main module again, and {main!r} is no file; write the script to one, or use InProcess, "
            "whose ranks are threads"
        )
    try:
        pickle.dumps(program)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise CommError(
            f"the program {program!r} cannot be sent to other processes ({error}); give a function that a module "
            "defines at its top, no lambda and none inside another, or use InProcess, whose ranks are threads"
        ) from error


def _result(rank: int, answer: tuple[bool, Any] | None) -> Any:
    if answer is None:
        raise CommAborted(rank, "its process ended well and gave no result")
    return answer[1]


def _start(method: str, arguments: tuple[Any, ...]) -> SpawnedRank:
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_rank_main, args=(theirs, *arguments))
    with _environment_of_ranks():
        process.start()
    theirs.close()
    return SpawnedRank(process, ours)


@contextmanager
def _environment_of_ranks() -> Iterator[None]:
    """Let threads of processes started here sleep while they wait, as they outnumber the cores.

    A rank's operators have as many threads as in this process, since their number affects the last bits. While
    processes start, modules in the current folder cannot shadow libraries; afterwards they have this process's module
    search path.
    """
    given = {name: value for name, value in _OF_RANKS.items() if name not in os.environ}
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]


def _rank_main(
    pipe: Connection,
    backend: Joins,
    environment: RankEnvironment,
    program: Callable[[RankCommunicator], Any],
    run_id: str,
) -> None:
    """Run one spawned rank; after a failure it exits at once, since torch's threads may hang."""
    hold_to_parent()
    if os.environ.get("PYTHONSAFEPATH") == _OF_RANKS["PYTHONSAFEPATH"]:
        del os.environ["PYTHONSAFEPATH"]  # for this process only, not its children
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends the ranks
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
    """Return an error that can be pickled, with its traceback as a note; an abort as its culprit and reason."""
    if isinstance(error, CommAborted):
        return error.culprit, error.reason
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes pickled here
        if type(copy) is type(error) and str(copy) == str(error):
            copy.add_note(f"On its rank:\n{text}")
            return copy
    except Exception:  # noqa: S110 - an error that cannot be pickled is sent as text
        pass
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    plain.add_note(f"On its rank:\n{text}")
    return plain


def _cause(children: list[SpawnedRank], ending: Ending) -> BaseException:
    """Return the original error, to be raised."""
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
