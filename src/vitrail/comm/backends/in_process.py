"""Ranks as threads of one process; posting never blocks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.comm.backends.rendezvous import Hub, HubPosting
from vitrail.comm.communicator import TIMEOUT_S, RankCommunicator
from vitrail.comm.outcome import RankOutcome, guarded
from vitrail.comm.trace.recording import Recorder
from vitrail.comm.transport import Abort, Part, Witness

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
SLICE_S = 0.5  # a wait wakes up this often, so that Ctrl-C is noticed


class ThreadTransport:
    """A rank's end of a hub that threads share."""

    backend = "in-process"

    def __init__(self, hub: Hub, condition: threading.Condition, rank: int):
        import torch

        self._hub, self._condition = hub, condition
        self.rank, self.world_size = rank, hub.world_size
        self.device: torch.device = torch.device("cpu")

    def clock(self) -> float:
        """Return seconds of the process's monotonic clock."""
        return time.monotonic()

    def open(self, domain: str) -> None:
        """Do nothing: domains need no preparation."""

    def post(
        self, domain: str, seq: int, header: bytes, parts: Sequence[Part], mine: Mapping[int, Tensor], witness: Witness
    ) -> HubPosting:
        """Post this rank's share and wake the other ranks; see ``Transport.post``."""
        with self._condition:
            posting = self._hub.post(self.rank, domain, seq, header, parts, mine, witness)
            self._condition.notify_all()
        return posting

    def wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Sleep until a posting makes ``ready()`` true, an abort, or the deadline."""
        with self._condition:
            while not ready() and self._hub.abort is None:
                left = SLICE_S if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return
                self._condition.wait(min(left, SLICE_S))

    def abort(self, abort: Abort) -> None:
        """Revoke the run and wake all ranks."""
        with self._condition:
            self._hub.revoke(abort)
            self._condition.notify_all()

    def aborted(self) -> Abort | None:
        """Return the abort, if any."""
        return self._hub.abort

    def note(self, text: str) -> None:
        """Record this rank's position."""
        self._hub.notes[self.rank] = text

    def behind(self) -> tuple[int, str]:
        """Return the rank that has posted least, in a tie this one, and its last note."""
        return self._hub.behind(self.rank)

    def shut(self, domains: Sequence[str]) -> None:
        """Do nothing: closed domains hold no resources."""

    def close(self) -> None:
        """Do nothing: the transport holds no resources."""


@frozen(kw_only=True)
class InProcess:
    """Ranks as threads of this process; posting never blocks."""

    timeout: float = field(default=TIMEOUT_S, validator=v.gt(0))  # seconds of one wait
    checksums: bool = False  # check the bytes of every message

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program on every rank, rank 0 in this thread; return the results in the order of ranks.

        Args:
            world_size: Number of ranks.
            program: Called with each rank's communicator, in the rank's thread.
            run_id: Equal on all ranks.

        Raises:
            BaseException: What the program raised on the rank that failed first, after every rank has ended.
        """
        return self.attempt(world_size, program, run_id).values()

    def attempt(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> RankOutcome[T]:
        """Run a program on every rank and return the outcome, errors included.

        Args:
            world_size: Number of ranks.
            program: Called with each rank's communicator, in the rank's thread.
            run_id: Equal on all ranks.
        """
        hub, condition, begin = Hub(world_size, time.monotonic), threading.Condition(), time.monotonic()
        traces = [Recorder(rank, time.monotonic) for rank in range(world_size)]
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}

        def rank_main(rank: int) -> None:
            try:
                transport = ThreadTransport(hub, condition, rank)
                options: dict[str, Any] = {"timeout": self.timeout, "checksums": self.checksums}
                communicator = RankCommunicator(transport, run_id, trace=traces[rank], **options)
                results[rank] = guarded(communicator, program)
            except BaseException as error:
                errors[rank] = error

        threads = [
            threading.Thread(target=rank_main, args=(rank,), name=f"rank-{rank}") for rank in range(1, world_size)
        ]
        for thread in threads:
            thread.start()
        rank_main(0)
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            with condition:
                hub.revoke(Abort(0, "KeyboardInterrupt"))
                condition.notify_all()
            raise
        return RankOutcome(results, errors, traces, time.monotonic() - begin, hub.abort, tuple(hub.slots))


def solo(run_id: str = "run") -> RankCommunicator:
    """Return the communicator of a single rank: no call ever blocks."""
    hub = Hub(1, time.monotonic)
    return RankCommunicator(ThreadTransport(hub, threading.Condition(), 0), run_id)
