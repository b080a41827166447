"""Ranks on a virtual clock: one runs at a time, and a schedule decides everything that chance decides elsewhere.

Each rank is a fiber (greenlet); every call of the communicator is a point where another may go on. Which rank
runs next, how long a message travels, when a rank stalls or dies is asked of a ``Schedule``,
so that a test can draw it, shrink it and replay it. The same schedule gives the same trace, byte for byte.

Fibers share a thread, and with it torch's modes: enter ``torch.inference_mode()`` around a simulation, not
only inside the ranks' program.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, frozen
from greenlet import greenlet

from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.guard import guarded
from vitrail.comm.hub import Hub, HubPosting
from vitrail.comm.schedule import Schedule, SimulatedCrash, SimulatedError
from vitrail.comm.trace import Recorder
from vitrail.comm.transport import Abort, Part, Witness

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
DETECTION_S = 1.0  # virtual seconds until the others know that a rank has died


@define
class _Rank:
    """A rank as the scheduler sees it."""

    fiber: greenlet
    ready: Callable[[], bool] | None = None  # what it waits for; None if it could run
    wakes: float = 0.0  # when it runs at the latest
    points: int = 0
    waits_for: str = ""


@frozen
class Outcome(Generic[T]):
    """How a simulated run ended.

    Attributes:
        results: Of the ranks that finished.
        errors: Of those that raised; a crash is a ``SimulatedCrash``.
        traces: By rank.
        makespan: Virtual seconds.
        abort: The first abort, if any.
    """

    results: dict[int, T]
    errors: dict[int, BaseException]
    traces: list[Recorder]
    makespan: float
    abort: Abort | None


class World(Generic[T]):
    """A virtual clock, a table and ranks that take turns."""

    def __init__(self, world_size: int, schedule: Schedule, timeout: float, checksums: bool = False):
        self.now = 0.0
        self.schedule, self._timeout, self._checksums = schedule, timeout, checksums
        self.hub = Hub(world_size, lambda: self.now, self._arrivals)
        self._ranks: list[_Rank] = []
        self._events: set[float] = set()  # moments at which something may become true
        self._dead: dict[int, float] = {}  # rank: when the others learn of it

    def _arrivals(self, source: int, nbytes: int) -> list[float]:
        times = []
        for destination in range(self.hub.world_size):
            delay = 0.0 if source == destination else self.schedule.delay(source, destination, nbytes)
            times.append(self.now + delay)
        self._events.update(time for time in times if time > self.now and time != math.inf)
        return times

    # ------------------------------------------------------------------ a rank's side

    def point(self, rank: int) -> None:
        """A place where the baton may be handed on and faults strike."""
        state = self._ranks[rank]
        state.points += 1
        fault = self.schedule.fault(rank, state.points)
        if fault is not None and fault.kind == "crash":
            self._dead[rank] = self.now + DETECTION_S
            self._events.add(self._dead[rank])
            raise SimulatedCrash(f"rank {rank} at point {state.points}")
        if fault is not None and fault.kind == "raise":
            raise SimulatedError(f"at point {state.points}")
        self.sleep(rank, 0.0 if fault is None else fault.seconds)

    def sleep(self, rank: int, seconds: float) -> None:
        """Let virtual time pass on a rank."""
        self.park(rank, lambda: False, self.now + seconds, f"sleep({seconds:g})")

    def park(self, rank: int, ready: Callable[[], bool], deadline: float, waits_for: str) -> None:
        """Hand the baton on until ``ready()`` or the deadline."""
        state = self._ranks[rank]
        state.ready, state.wakes, state.waits_for = ready, deadline, waits_for
        chosen = self._next()
        if chosen != rank:
            self._ranks[chosen].fiber.switch()
        state.ready = None

    # ------------------------------------------------------------------ the schedule's side

    def run(self, program: Callable[[RankCommunicator], T], run_id: str) -> Outcome[T]:
        """Run a program on every rank until all have ended."""
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}
        traces = [Recorder(rank, lambda: self.now) for rank in range(self.hub.world_size)]

        def rank_main(rank: int) -> None:
            try:
                communicator = RankCommunicator(
                    SimulatedTransport(self, rank),
                    run_id,
                    timeout=self._timeout,
                    checksums=self._checksums,
                    trace=traces[rank],
                )
                results[rank] = guarded(communicator, program)
            except BaseException as error:
                errors[rank] = error

        self._ranks = [_Rank(greenlet(functools.partial(rank_main, rank))) for rank in range(self.hub.world_size)]
        while not all(state.fiber.dead for state in self._ranks):
            self._ranks[self._next()].fiber.switch()
        return Outcome(results, errors, traces, self.now, self.hub.abort)

    def _next(self) -> int:
        """The rank that goes on; if none can, let time pass."""
        while True:
            self._bury()
            able = [r for r, state in enumerate(self._ranks) if not state.fiber.dead and self._can_run(state)]
            if able:
                return self.schedule.choose(able) if len(able) > 1 else able[0]
            self._let_time_pass()

    def _let_time_pass(self) -> None:
        """Go to the next moment at which something may become true; if there is none, nobody ever goes on."""
        waiting = [(rank, state) for rank, state in enumerate(self._ranks) if not state.fiber.dead]
        moments = {state.wakes for _, state in waiting} | self._events
        later = min((moment for moment in moments if self.now < moment < math.inf), default=None)
        if later is None:
            graph = "; ".join(f"rank {rank} waits for {state.waits_for}" for rank, state in waiting)
            self.hub.revoke(Abort(self.hub.behind()[0], f"deadlock: {graph}"))
            return
        self.now = later
        self._events = {moment for moment in self._events if moment > later}

    def _can_run(self, state: _Rank) -> bool:
        aborted = self.hub.abort is not None
        return state.ready is None or state.wakes <= self.now or aborted or state.ready()

    def _bury(self) -> None:
        """The others learn of a rank's death."""
        for rank, known in self._dead.items():
            if known <= self.now:
                self.hub.revoke(Abort(rank, "the rank died"))


class SimulatedTransport:
    """A rank's end of a world."""

    backend = "simulated"

    def __init__(self, world: World[Any], rank: int):
        import torch

        self._world = world
        self.rank, self.world_size = rank, world.hub.world_size
        self.device: torch.device = torch.device("cpu")

    def clock(self) -> float:
        """Virtual seconds."""
        return self._world.now

    def spend(self, seconds: float) -> None:
        """Compute for so long."""
        self._world.sleep(self.rank, seconds)

    def open(self, domain: str) -> None:
        """Nothing to prepare."""

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> HubPosting:
        """Lay down this rank's share."""
        self._world.point(self.rank)
        return self._world.hub.post(self.rank, domain, seq, header, parts, mine, witness)

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Hand the baton on until it is true."""
        self._world.point(self.rank)
        if not ready() and self._world.hub.abort is None:
            self._world.park(
                self.rank, ready, math.inf if deadline is None else deadline, self._world.hub.notes[self.rank]
            )

    def abort(self, abort: Abort) -> None:
        """Revoke the run."""
        self._world.hub.revoke(abort)

    def aborted(self) -> Abort | None:
        """The abort, if any."""
        return self._world.hub.abort

    def note(self, text: str) -> None:
        """Where this rank is."""
        self._world.hub.notes[self.rank] = text

    def behind(self) -> tuple[int, str]:
        """The rank that has posted least."""
        return self._world.hub.behind()

    def close(self) -> None:
        """Nothing to give back."""
