"""Ranks as spawned processes of this one, which keeps the store and watches over them."""

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
    """A backend of processes."""

    @property
    def timeout(self) -> float:
        """Seconds of one wait."""

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

    @property
    def is_done(self) -> bool:
        """Whether its result has come."""
        return self.answer is not None and self.answer[0]

    def let_go(self) -> None:
        """SIGTERM, too: nothing is half done."""
        self.terminate()

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
        CommError: If processes cannot be started from here, or the program cannot be sent to them.
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
    """Refuse what would end in every new process with an error of its own.

    A new process imports the main module again and finds the program by its name there.
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
    """Have processes that start here let their threads sleep while these wait, being more than the cores.

    A rank's operators have as many threads as in this process: their number reaches the last bits. What lies in the
    current folder is not taken for a library while they start; later they find what this process finds.
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
    """The life of a spawned rank; after a failure it ends at once, since torch's threads may hang."""
    hold_to_parent()
    if os.environ.get("PYTHONSAFEPATH") == _OF_RANKS["PYTHONSAFEPATH"]:
        del os.environ["PYTHONSAFEPATH"]  # of this process alone
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
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        copy: BaseException = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        if type(copy) is type(error) and str(copy) == str(error):
            copy.add_note(f"On its rank:\n{text}")
            return copy
    except Exception:  # noqa: S110 - an error that does not survive is sent as text
        pass
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    plain.add_note(f"On its rank:\n{text}")
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
