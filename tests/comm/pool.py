"""Gloo ranks that live on from test to test, in processes that fork from one that has loaded torch."""

import contextlib
import multiprocessing
import os
import signal
import time
from typing import ClassVar

from attrs import frozen

MODULES = ["torch.distributed", "hypothesis.strategies", "vitrail.comm.backends.process_group", "vitrail.testing.comm"]
TIMEOUT_S = 20.0  # of one wait of a rank
PATIENCE_S = 60.0  # for an answer
MOST = 5  # ranks of a law
FAILURES = 12  # after so many failed jobs the processes are renewed: each leaves groups that cannot be destroyed

os.environ.setdefault("OMP_NUM_THREADS", "1")
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(MODULES)


@frozen(eq=False)
class Answer:
    """What a rank sent back: the program's result, or its error; ``died`` if its process is gone."""

    value: object = None
    error: BaseException | None = None
    died: bool = False


class Pool:
    """Processes that wait for jobs."""

    def __init__(self, size):
        from vitrail.comm.backends.key_store import StoreServer, listener_at

        self._store = StoreServer(listener_at(), "secret", "a pool of ranks")
        self.port = self._store.port
        self._workers = [None] * size
        self._jobs = self._failures = 0

    def run(self, world, program, *arguments, timeout=TIMEOUT_S, checksums=False, run_ids=None):
        """Run ``program(communicator, *arguments)`` on so many ranks; an answer of each."""
        self._renew(world)
        self._jobs += 1
        for rank in range(world):
            run_id = "run" if run_ids is None else run_ids[rank]
            options = {"timeout": timeout, "checksums": checksums, "run_id": run_id}
            self._workers[rank][1].send((self._jobs, rank, world, self.port, program, arguments, options))
        answers = [self._answer(rank) for rank in range(world)]
        self._failures += any(answer.error is not None or answer.died for answer in answers)
        return answers

    def close(self):
        for worker in self._workers:
            _end(worker)
        self._store.close()

    def _answer(self, rank):
        process, pipe = self._workers[rank]
        limit = time.monotonic() + PATIENCE_S
        while not pipe.poll(0.05):
            if not process.is_alive() and not pipe.poll():
                return Answer(died=True)
            if time.monotonic() > limit:
                process.kill()
                raise AssertionError(f"rank {rank} neither answered nor ended within {PATIENCE_S:g} s: a hang")
        try:
            well, result = pipe.recv()
        except EOFError:
            return Answer(died=True)
        return Answer(value=result) if well else Answer(error=restored(result))

    def _renew(self, world):
        """Replace what died, and all after many failures: together, so that no rank waits for another's start."""
        used_up = self._failures >= FAILURES
        for rank, worker in enumerate(self._workers):
            if worker is not None and (used_up or not worker[0].is_alive()):
                _end(worker)
                self._workers[rank] = None
        for rank in range(world):
            if self._workers[rank] is None:
                self._workers[rank] = _begin()
        self._failures = 0 if used_up else self._failures


def restored(result):
    from vitrail.errors import CommAborted

    return CommAborted(*result) if isinstance(result, tuple) else result


def _begin():
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _end(worker):
    if worker is not None:
        process, pipe = worker
        pipe.close()
        process.kill()
        process.join()
        process.close()


def _work(pipe):
    """The life of a worker; the end of the pipe ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(_perform(*pipe.recv()))
    os._exit(0)


def _perform(job, rank, world, port, program, arguments, options):
    from vitrail.comm.backends.process_group import ProcessGroupTransport
    from vitrail.comm.backends.process_group_spawn import portable
    from vitrail.comm.communicator import RankCommunicator
    from vitrail.comm.environment import RankEnvironment
    from vitrail.comm.outcome import guarded

    environment = RankEnvironment(rank, world, rank, "127.0.0.1", port, store_is_hosted=True, secret="secret")
    transport = None
    try:
        transport = ProcessGroupTransport(environment, f"pool/{job}", options["timeout"])
        communicator = RankCommunicator(transport, **options)
        return True, guarded(communicator, lambda each: program(each, *arguments))
    except BaseException as error:
        return False, portable(error)
    finally:
        if transport is not None:
            transport.close()


def values(answers):
    """The results by rank of a run in which nothing may go wrong."""
    for answer in answers:
        assert not answer.died
        if answer.error is not None:
            raise answer.error
    return [answer.value for answer in answers]


@frozen(kw_only=True)
class PooledGloo:
    """What ``Gloo`` is, in processes that live on from run to run."""

    timeout: float = TIMEOUT_S
    checksums: bool = False
    pools: ClassVar[list] = []

    def run(self, world_size, program, run_id="run"):
        from vitrail.comm.outcome import first_cause
        from vitrail.comm.transport import Abort
        from vitrail.errors import CommAborted

        if not self.pools:
            self.pools.append(Pool(MOST))
        options = {"timeout": self.timeout, "checksums": self.checksums}
        answers = self.pools[0].run(world_size, program, run_ids=[run_id] * world_size, **options)
        errors = {rank: answer.error for rank, answer in enumerate(answers) if answer.error is not None}
        aborts = [Abort(error.culprit, error.reason) for error in errors.values() if isinstance(error, CommAborted)]
        if errors:
            raise first_cause(errors, aborts[0] if aborts else None)
        return values(answers)

    @classmethod
    def end(cls):
        while cls.pools:
            cls.pools.pop().close()
