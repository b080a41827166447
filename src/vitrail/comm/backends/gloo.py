"""Ranks as processes that talk through gloo."""

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
    """Ranks as processes on CPU, of one host or several."""

    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # seconds of one wait
    checksums: bool = False  # check the bytes of every message
    start: Start = "spawn"  # of the processes that run starts: each anew, or copies of one that has imported

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program, which can be pickled, in a process for every rank, and give the results by rank.

        Raises:
            BaseException: What the culprit raised, with its traceback as a note.
            CommAborted: If the culprit's process died.
        """
        from vitrail.comm.backends.process_group_spawn import run_spawned

        return run_spawned(self, world_size, program, run_id, self.start)

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """The communicator of a process that something else has launched.

        Every rank joins equally often.

        Raises:
            CommError: If the ranks do not find each other.
        """
        from vitrail.comm.backends.process_group import join

        place = next_namespace(environment)
        return join(environment, place, run_id, timeout=self.timeout, checksums=self.checksums)


def next_namespace(environment: RankEnvironment) -> str:
    """Where the next communicator of this process writes."""
    return namespace(environment, next(_joined))
