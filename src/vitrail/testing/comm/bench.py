"""What a law is tried on: any backend behind one call, which tells how the run ended on every rank.

A law's program is a function of a module with its arguments bound by ``functools.partial``, so that it can be
sent to processes. On each rank it runs inside a ``Witness``, which keeps what the rank returned or raised, and its
tale, also where the backend itself tells nothing of it.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from attrs import define, field, frozen

from vitrail.comm.backend import Backend
from vitrail.comm.backends.simulated import Simulated, World
from vitrail.comm.protocol import Communicator
from vitrail.errors import CommAborted
from vitrail.testing.comm.schedules import DrawnSchedule, explored
from vitrail.testing.comm.telling import RecordedCommunicator, Transcript, show

Program = Callable[[RecordedCommunicator], Any]
Kind = Literal["virtual", "threads", "processes"]
TIMEOUT_S = 20.0  # of one wait, where time is real
VIRTUAL_TIMEOUT_S = 100.0
PATIENCE_S = 60.0  # beyond the timeout, until a run counts as hanging
SWITCH_S = 1e-6  # between two threads: as often as the interpreter lets them


class LawBroken(AssertionError):  # noqa: N818 - what a reader is told
    """What a law says was not so."""


class Hang(BaseException):
    """A run neither ended nor timed out; nothing more is tried, since every try would hang."""


def expect(holds: bool, otherwise: str) -> None:
    """Judge.

    Raises:
        LawBroken: With what was seen, if it does not hold.
    """
    if not holds:
        raise LawBroken(otherwise)


@define
class LawReport:
    """What one rank left behind."""

    tale: Transcript = field(factory=Transcript)
    result: Any = None
    error: BaseException | None = None
    is_over: bool = False


@frozen(eq=False)
class Ended:
    """How a run ended.

    Attributes:
        world_size: Number of ranks.
        reports: By rank; of a rank whose process was killed there is none.
        returned: What the backend's ``run`` returned; None if it raised.
        raised: What it raised.
        schedule: That the ranks followed, where time is virtual.
    """

    world_size: int
    reports: dict[int, LawReport]
    returned: list[Any] | None
    raised: BaseException | None
    schedule: DrawnSchedule | None = None

    @property
    def results(self) -> dict[int, Any]:
        """Of the ranks that finished."""
        return {rank: r.result for rank, r in sorted(self.reports.items()) if r.is_over and r.error is None}

    @property
    def errors(self) -> dict[int, BaseException]:
        """Of the ranks that raised."""
        return {rank: r.error for rank, r in sorted(self.reports.items()) if r.error is not None}

    @property
    def causes(self) -> set[tuple[int, str]]:
        """(culprit, reason) of every rank that was told of an abort."""
        return {(error.culprit, error.reason) for error in self.errors.values() if isinstance(error, CommAborted)}

    def values(self) -> list[Any]:
        """The results by rank of a run in which nothing may go wrong."""
        for rank, error in self.errors.items():
            if isinstance(error, AssertionError):
                raise LawBroken(f"on rank {rank}: {error}")
        for rank, error in self.errors.items():
            expect(False, f"rank {rank} raised {type(error).__name__}: {error}\n  where nothing may go wrong")
        expect(self.raised is None, f"every rank ended well, and `run` raised {self.raised!r}")
        whole = set(self.results) == set(range(self.world_size))
        expect(whole, f"the program ran to its end on ranks {sorted(self.results)} of {self.world_size}")
        values = [self.results[rank] for rank in range(self.world_size)]
        message = f"`run` returned {show(self.returned)}\n  where the program returned, by rank, {show(values)}"
        expect(self.returned == values, message if self.returned != values else "")
        return values

    def report_text(self) -> str:
        """The tales of all ranks, to be read."""
        parts = [] if self.schedule is None else [str(self.schedule)]
        for rank in range(self.world_size):
            report = self.reports.get(rank)
            if report is None:
                parts.append(f"rank {rank}\n      left no word: it was never begun, or its process ended")
                continue
            ending = "" if report.is_over else "\n      had not ended"
            if report.error is not None:
                ending = f"\n      ended with {type(report.error).__name__}: {report.error}"
            parts.append(f"rank {rank}\n{report.tale}{ending}")
        return "\n".join(part.rstrip() for part in parts if part)


class Bench(Protocol):
    """Runs a law's program."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def address(self) -> str:
        """Where the backend is: MODULE:CLASS."""

    @property
    def kind(self) -> Kind:
        """What its ranks are."""

    @property
    def examples(self) -> int:
        """How many a law tries."""

    @property
    def stirred(self) -> int:
        """Other schedules that each example is tried with; 0 where time is real."""

    def __call__(
        self,
        world_size: int,
        program: Program,
        schedule: DrawnSchedule | None = None,
        *,
        timeout: float | None = None,
        checksums: bool = False,
    ) -> Ended:
        """Run a program on so many ranks.

        Args:
            world_size: Number of ranks.
            program: Can be pickled.
            schedule: What chance decides, where time is virtual.
            timeout: Seconds of one wait; the bench's own if None.
            checksums: Check the bytes of every message.
        """


class Witness:
    """A law's program on one rank, and what becomes of it; goes to other processes and writes its reports there."""

    def __init__(self, program: Program, folder: Path | None):
        self._program, self._folder, self._pid = program, folder, os.getpid()
        self._here: dict[int, LawReport] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_here": {}}

    def __call__(self, communicator: Communicator) -> Any:
        """Run it on one rank."""
        recorded = RecordedCommunicator(communicator)
        report = self._here[recorded.rank] = LawReport(recorded.tale)
        try:
            report.result = self._program(recorded)
            communicator.check()
            communicator.close()
        except BaseException as error:
            report.error = error
            raise
        finally:
            report.is_over = True
            if os.getpid() != self._pid:
                self._write(recorded.rank, report)
        return report.result

    def reports(self) -> dict[int, LawReport]:
        """Of all ranks that left one."""
        found = dict(self._here)
        for path in () if self._folder is None else self._folder.glob("*.pickle"):
            found[int(path.stem)] = pickle.loads(path.read_bytes())  # noqa: S301 - our own
        return found

    def _write(self, rank: int, report: LawReport) -> None:
        try:
            content = pickle.dumps(report)
        except Exception:  # an error or a result that cannot be sent: in words
            error = None if report.error is None else RuntimeError(f"{type(report.error).__name__}: {report.error}")
            content = pickle.dumps(LawReport(report.tale, repr(report.result), error, is_over=True))
        assert self._folder is not None
        part = self._folder / f"{rank}.part"
        part.write_bytes(content)
        part.rename(self._folder / f"{rank}.pickle")


@define(eq=False, slots=False)
class OnBackend:
    """A backend of real time, asked through nothing but its ``run``.

    Args:
        backend: The class, as it is registered; called with ``timeout`` and ``checksums``.
        name: For messages.
        examples: How many a law tries; the default goes by what the ranks are.
        timeout: Seconds of one wait.
    """

    backend: Callable[..., Backend]
    name: str = ""
    examples: int = 0
    timeout: float = TIMEOUT_S
    stirred: int = field(default=0, init=False)
    address: str = field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.backend, type):
            self.name = self.name or self.backend.__name__
            self.address = f"{self.backend.__module__}:{self.backend.__qualname__}"
        else:
            self.name = self.name or str(self.backend)
            self.address = f"?:{self.name}"
        self.examples = self.examples or {"threads": 6, "processes": 3}[self.kind]

    @cached_property
    def kind(self) -> Kind:
        """What its ranks are, by asking one of them."""
        pid = self.backend(timeout=self.timeout, checksums=False).run(1, _process)[0]
        return "threads" if pid == os.getpid() else "processes"

    def __call__(
        self,
        world_size: int,
        program: Program,
        schedule: DrawnSchedule | None = None,
        *,
        timeout: float | None = None,
        checksums: bool = False,
    ) -> Ended:
        """Run a program; the schedule plays no part."""
        explored[self.kind] += 1
        limit = self.timeout if timeout is None else timeout
        backend = self.backend(timeout=limit, checksums=checksums)
        folder = Path(tempfile.mkdtemp(prefix="vitrail-comm-"))
        witness, found = Witness(program, folder), list[tuple[list[Any] | None, BaseException | None]]()

        def run() -> None:
            try:
                found.append((list(backend.run(world_size, witness)), None))
            except BaseException as error:
                found.append((None, error))

        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            thread = threading.Thread(target=run, name="rank-0", daemon=True)
            thread.start()
            thread.join(limit + PATIENCE_S)
            if not found:
                reports = Ended(world_size, witness.reports(), None, None).report_text()
                raise Hang(f"the run had not ended {limit + PATIENCE_S:g} s after it began\n\n{reports}")
            return Ended(world_size, witness.reports(), *found[0])
        finally:
            sys.setswitchinterval(before)
            shutil.rmtree(folder, ignore_errors=True)


@define(eq=False)
class OnSimulator:
    """Ranks on the virtual clock, by a drawn schedule: every order of events can be tried, shrunk and replayed.

    Args:
        examples: How many a law tries.
        stirred: Other schedules, longer than Hypothesis likes to draw them, that each example is tried with.
    """

    examples: int = 40
    stirred: int = 0
    name: str = "Simulated"
    address: str = "vitrail.comm:Simulated"
    kind: Kind = "virtual"
    timeout: float = VIRTUAL_TIMEOUT_S

    def __call__(
        self,
        world_size: int,
        program: Program,
        schedule: DrawnSchedule | None = None,
        *,
        timeout: float | None = None,
        checksums: bool = False,
    ) -> Ended:
        """Run a program by a schedule."""
        explored[self.kind] += 1
        chance = DrawnSchedule() if schedule is None else schedule.again()
        limit = self.timeout if timeout is None else timeout
        witness = Witness(program, None)
        outcome = World[Any](world_size, chance, limit, checksums).run(witness, "run")
        try:
            ended = Ended(world_size, witness.reports(), outcome.values(), None, chance)
        except BaseException as error:
            return Ended(world_size, witness.reports(), None, error, chance)
        expect(outcome.left_over == (), f"buffers of {outcome.left_over} are kept after the end")
        return ended


def bench_of(backend: Callable[..., Backend], examples: int = 0, timeout: float = 0.0) -> Bench:
    """What to try a backend's laws on.

    Args:
        backend: The class, as it is registered.
        examples: How many a law tries; 0 for the default.
        timeout: Seconds of one wait; 0 for the default.
    """
    if backend is Simulated:
        return OnSimulator(examples=examples or 40)
    return OnBackend(backend, examples=examples, timeout=timeout or TIMEOUT_S)


def _process(communicator: Communicator) -> int:
    return os.getpid()
