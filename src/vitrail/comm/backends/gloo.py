"""Ranks as processes that communicate through gloo."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, TypeVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.comm.communicator import TIMEOUT_S, RankCommunicator
from vitrail.comm.environment import RankEnvironment, namespace

T = TypeVar("T")
_joined = itertools.count()
Start = Literal["spawn", "forkserver"]


@frozen(kw_only=True)
class Gloo:
    """Ranks as processes on the CPU, on one host or several."""

    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # seconds of one wait
    checksums: bool = False  # check the bytes of every message
    start: Start = "spawn"  # start of run's processes: anew, or forked from one that has imported the main module

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program, which must be picklable, in one process per rank; return the results in the order of ranks.

        Args:
            world_size: Number of ranks.
            program: Called with each rank's communicator.
            run_id: Equal on all ranks.

        Raises:
            BaseException: What the program raised on the rank that failed first, with its traceback as a note.
            CommAborted: If that rank's process died.
        """
        from vitrail.comm.backends.process_group_spawn import run_spawned

        return run_spawned(self, world_size, program, run_id, self.start)

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """Return the communicator of a process that another program has launched.

        Every rank must call it the same number of times.

        Raises:
            CommError: If the ranks do not find each other.
        """
        from vitrail.comm.backends.process_group import join

        place = next_namespace(environment)
        return join(environment, place, run_id, timeout=self.timeout, checksums=self.checksums)


def next_namespace(environment: RankEnvironment) -> str:
    """Return the prefix of the store's keys for the next communicator of this process."""
    return namespace(environment, next(_joined))
