"""Ranks on a virtual clock: one runs at a time, and a schedule makes all random choices.

Each rank is a thread that runs only while it holds the baton; at every call of the communicator another rank may
continue. The next rank, the delay of a message, and the faults of a rank come from a ``Schedule``, so that a test can
draw, shrink and replay it. The same schedule gives the same trace, byte for byte. (Threads and not fibers: torch walks
the stack whenever it raises, and that of a fiber has no end.)
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, field, frozen
from attrs import validators as v

from vitrail.comm.backends.rendezvous import Hub, HubPosting
from vitrail.comm.backends.virtual_schedule import Schedule, SeededSchedule, SimulatedCrash, SimulatedError
from vitrail.comm.communicator import TIMEOUT_S, RankCommunicator
from vitrail.comm.outcome import RankOutcome, guarded
from vitrail.comm.trace.recording import Recorder
from vitrail.comm.transport import Abort, Part, Witness

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
DETECTION_S = 1.0  # virtual seconds until other ranks learn of a crash


@define
class _Rank:
    """State of a rank for the scheduler."""

    baton: threading.Lock  # locked as long as the rank must not run
    has_ended: bool = False
    ready: Callable[[], bool] | None = None  # the condition that it waits for; None for a time alone
    wakes: float = 0.0  # time at which it runs at the latest
    points: int = 0
    checked_age: int = -1  # age of the world when the condition was last found false


class World(Generic[T]):
    """A virtual clock, a table and ranks that take turns."""

    def __init__(self, world_size: int, schedule: Schedule, timeout: float, checksums: bool = False):
        self.now = 0.0
        self.schedule, self._timeout, self._checksums = schedule, timeout, checksums
        self.hub = Hub(world_size, lambda: self.now, self._arrivals)
        self._ranks: list[_Rank] = []
        self._events: set[float] = set()  # times at which a condition may become true
        self._dead: dict[int, float] = {}  # rank: time at which others learn of it
        self._age = 0  # increased whenever a condition may have become true

    def _arrivals(self, source: int, nbytes: int) -> list[float]:
        times = []
        for destination in range(self.hub.world_size):
            delay = 0.0 if source == destination else self.schedule.delay(source, destination, nbytes)
            times.append(self.now + delay)
        self._events.update(time for time in times if time > self.now and time != math.inf)
        return times

    # ------------------------------------------------------------------ a rank's side

    def point(self, rank: int) -> None:
        """Count a call of a rank, and apply the schedule's fault.

        Raises:
            SimulatedCrash: If the rank crashes or has crashed.
            SimulatedError: If the schedule requests an error.
        """
        state = self._ranks[rank]
        state.points += 1
        if rank in self._dead:
            raise SimulatedCrash(f"rank {rank} is dead")
        fault = self.schedule.fault(rank, state.points)
        if fault is None:
            return
        if fault.kind == "crash":
            self._dead[rank] = self.now + DETECTION_S
            self._events.add(self._dead[rank])
            raise SimulatedCrash(f"rank {rank} at point {state.points}")
        if fault.kind == "raise":
            raise SimulatedError(f"at point {state.points}")
        self.sleep(rank, fault.seconds)

    def is_dead(self, rank: int) -> bool:
        """Whether a rank has crashed."""
        return rank in self._dead

    def sleep(self, rank: int, seconds: float) -> None:
        """Let virtual time pass on a rank; an abort wakes it only if it would sleep for ever."""
        self.park(rank, None, self.now + seconds)

    def park(self, rank: int, ready: Callable[[], bool] | None, deadline: float) -> None:
        """Pass the baton until ``ready()``, an abort or the deadline.

        Args:
            rank: The rank that waits.
            ready: Condition; None to wait for the deadline alone.
            deadline: Virtual time; inf for none.
        """
        state = self._ranks[rank]
        state.ready, state.wakes, state.checked_age = ready, deadline, -1
        chosen = self._next()
        if chosen != rank:
            self._ranks[chosen].baton.release()
            state.baton.acquire()

    def tell(self) -> None:
        """Note that something was posted, so that conditions are evaluated again."""
        self._age += 1

    # ------------------------------------------------------------------ the schedule's side

    def run(self, program: Callable[[RankCommunicator], T], run_id: str) -> RankOutcome[T]:
        """Run a program on every rank until all have ended; return the outcome."""
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

        self._take_turns(rank_main)
        return RankOutcome(results, errors, traces, self.now, self.hub.abort, tuple(self.hub.slots))

    def _take_turns(self, rank_main: Callable[[int], None]) -> None:
        """Run a function on every rank, one at a time, until all have ended."""
        self._ranks = [_Rank(threading.Lock()) for _ in range(self.hub.world_size)]
        all_ended, broken = threading.Lock(), list[BaseException]()

        def turn(rank: int) -> None:
            self._ranks[rank].baton.acquire()
            rank_main(rank)
            self._ranks[rank].has_ended = True
            try:
                following = None if all(state.has_ended for state in self._ranks) else self._next()
            except BaseException as error:  # an error of the schedule: there is no next rank
                broken.append(error)
                following = None
            (all_ended if following is None else self._ranks[following].baton).release()

        for lock in (all_ended, *(state.baton for state in self._ranks)):
            lock.acquire()
        for rank in range(len(self._ranks)):
            threading.Thread(target=turn, args=(rank,), name=f"rank-{rank}", daemon=True).start()
        self._ranks[self._next()].baton.release()
        try:
            all_ended.acquire()
        except KeyboardInterrupt:
            self.hub.revoke(Abort(0, "KeyboardInterrupt"))
            all_ended.acquire()
            raise
        for error in broken:
            raise error

    def _next(self) -> int:
        """Return the rank that runs next; if none can, let time pass."""
        while True:
            self._bury()
            able = [r for r, state in enumerate(self._ranks) if not state.has_ended and self._can_run(state)]
            if able:
                return self.schedule.choose(able) if len(able) > 1 else able[0]
            self._let_time_pass()

    def _let_time_pass(self) -> None:
        """Advance to the next time at which a condition may become true; without one, revoke as a deadlock."""
        waiting = [(rank, state) for rank, state in enumerate(self._ranks) if not state.has_ended]
        moments = {state.wakes for _, state in waiting} | self._events
        later = min((moment for moment in moments if self.now < moment < math.inf), default=None)
        if later is None:
            graph = "; ".join(f"rank {rank} waits for {state.ready or 'ever'}" for rank, state in waiting)
            self.hub.revoke(Abort(self.hub.behind(waiting[0][0])[0], f"deadlock: {graph}"))
            return
        self.now = later
        self._age += 1
        self._events = {moment for moment in self._events if moment > later}

    def _can_run(self, state: _Rank) -> bool:
        if state.wakes <= self.now or (self.hub.abort is not None and (state.ready or state.wakes == math.inf)):
            return True
        if state.ready is None or state.checked_age == self._age:
            return False
        state.checked_age = self._age
        if state.ready():
            state.wakes = self.now  # a condition stays true
            return True
        return False

    def _bury(self) -> None:
        """Revoke the run for crashes that other ranks have learnt of by now."""
        for rank, known in self._dead.items():
            if known <= self.now:
                self.hub.revoke(Abort(rank, "the rank died"))


class SimulatedTransport:
    """A rank's end of a simulated world."""

    backend = "simulated"

    def __init__(self, world: World[Any], rank: int):
        import torch

        self._world = world
        self.rank, self.world_size = rank, world.hub.world_size
        self.device: torch.device = torch.device("cpu")

    def clock(self) -> float:
        """Return virtual seconds."""
        return self._world.now

    def spend(self, seconds: float) -> None:
        """Let virtual seconds of computing pass."""
        self._world.sleep(self.rank, seconds)

    def open(self, domain: str) -> None:
        """Do nothing: domains need no preparation."""

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> HubPosting:
        """Post this rank's share; another rank may run before. See ``Transport.post``."""
        self._world.point(self.rank)
        self._world.sleep(self.rank, 0.0)
        self._world.tell()
        return self._world.hub.post(self.rank, domain, seq, header, parts, mine, witness)

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Pass the baton until the condition, an abort or the deadline."""
        self._world.point(self.rank)
        self._world.park(self.rank, ready, math.inf if deadline is None else deadline)

    def abort(self, abort: Abort) -> None:
        """Revoke the run, unless this rank has crashed."""
        if not self._world.is_dead(self.rank):
            self._world.hub.revoke(abort)

    def aborted(self) -> Abort | None:
        """Return the abort, if any."""
        return self._world.hub.abort

    def note(self, text: str) -> None:
        """Record this rank's position."""
        self._world.hub.notes[self.rank] = text

    def behind(self) -> tuple[int, str]:
        """Return the rank that has posted least, in a tie this one, and its last note."""
        return self._world.hub.behind(self.rank)

    def shut(self, domains: Sequence[str]) -> None:
        """Do nothing: closed domains hold no resources."""

    def close(self) -> None:
        """Do nothing: the transport holds no resources."""


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
