"""The simulated backend: ranks that take turns on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.comm.backends.virtual_schedule import Schedule, SeededSchedule
from vitrail.comm.backends.virtual_world import World
from vitrail.comm.communicator import TIMEOUT_S, RankCommunicator
from vitrail.comm.outcome import RankOutcome

T = TypeVar("T")


@frozen(kw_only=True)
class Simulated:
    """Ranks that take turns on a virtual clock, by a schedule."""

    seed: int = field(default=0, validator=v.ge(0))  # seed of order and delays
    latency: float = field(default=1e-3, validator=v.ge(0))  # mean delay of a message, virtual seconds
    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # virtual seconds of one wait
    checksums: bool = False  # check the bytes of every message

    def simulate(
        self,
        world_size: int,
        program: Callable[[RankCommunicator], T],
        schedule: Schedule | None = None,
        run_id: str = "run",
    ) -> RankOutcome[T]:
        """Run a program on every rank and return the outcome, errors included.

        Args:
            world_size: Number of ranks.
            program: Called with each rank's communicator, in the rank's thread.
            schedule: Gives order, delays and faults; a ``SeededSchedule`` if None.
            run_id: Equal on all ranks.
        """
        chance = SeededSchedule(self.seed, self.latency) if schedule is None else schedule
        return World[T](world_size, chance, self.timeout, self.checksums).run(program, run_id)

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program on every rank; return the results in the order of ranks.

        Args:
            world_size: Number of ranks.
            program: Called with each rank's communicator, in the rank's thread.
            run_id: Equal on all ranks.

        Raises:
            BaseException: What the program raised on the rank that failed first.
        """
        return self.simulate(world_size, program, run_id=run_id).values()
