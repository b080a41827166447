"""Benches: run a law's program on a backend and report how the run ended on every rank.

A law's program is a module-level function with its arguments bound by ``functools.partial``, so that it can be
pickled for processes. On each rank it runs inside a ``Witness``, which records what the rank returned or raised and
the transcript of its calls, independently of what the backend reports.
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
TIMEOUT_S = 20.0  # of one wait, in real time
VIRTUAL_TIMEOUT_S = 100.0  # of one wait, in virtual time
PATIENCE_S = 60.0  # beyond the timeout, after which a run counts as hanging
SWITCH_S = 1e-6  # interval of switching between threads, the shortest possible


class LawBroken(AssertionError):  # noqa: N818 - reads as a sentence in reports
    """A backend broke a law."""


class Hang(BaseException):
    """A run neither ended nor timed out; the check stops, since further examples would hang as well."""


def expect(holds: bool, otherwise: str) -> None:
    """Assert a condition of a law.

    Args:
        holds: The condition.
        otherwise: The error message.

    Raises:
        LawBroken: If the condition is false.
    """
    if not holds:
        raise LawBroken(otherwise)


@define
class LawReport:
    """Record of one rank: transcript, result or error, and whether the program ended."""

    tale: Transcript = field(factory=Transcript)
    result: Any = None
    error: BaseException | None = None
    is_over: bool = False


@frozen(eq=False)
class Ended:
    """How a run ended.

    Attributes:
        world_size: Number of ranks.
        reports: Reports by rank; missing for ranks whose process was killed.
        returned: Return value of the backend's ``run``; None if it raised.
        raised: The exception that ``run`` raised; None if it returned.
        schedule: The schedule of the ranks in virtual time; None in real time.
    """

    world_size: int
    reports: dict[int, LawReport]
    returned: list[Any] | None
    raised: BaseException | None
    schedule: DrawnSchedule | None = None

    @property
    def results(self) -> dict[int, Any]:
        """Results of the ranks that finished, by rank."""
        return {rank: r.result for rank, r in sorted(self.reports.items()) if r.is_over and r.error is None}

    @property
    def errors(self) -> dict[int, BaseException]:
        """Exceptions of the ranks that raised, by rank."""
        return {rank: r.error for rank, r in sorted(self.reports.items()) if r.error is not None}

    @property
    def absent(self) -> set[int]:
        """Ranks that left no word; on a busy machine one may not have begun when another has failed already."""
        return set(range(self.world_size)) - self.reports.keys()

    @property
    def causes(self) -> set[tuple[int, str]]:
        """Different (culprit, reason) pairs of the ranks' CommAborted errors."""
        return {(error.culprit, error.reason) for error in self.errors.values() if isinstance(error, CommAborted)}

    def values(self) -> list[Any]:
        """Return the results by rank of a run that must succeed.

        Raises:
            LawBroken: If a rank raised or did not finish, or ``run`` raised or returned other results.
        """
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
        """Format the schedule and the transcripts of all ranks."""
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
    """Runs the programs of laws on a backend."""

    @property
    def name(self) -> str:
        """Name of the backend in messages."""

    @property
    def address(self) -> str:
        """Address of the backend class, MODULE:CLASS."""

    @property
    def kind(self) -> Kind:
        """Kind of its ranks: threads, processes, or "virtual" in virtual time."""

    @property
    def examples(self) -> int:
        """Number of programs per law."""

    @property
    def stirred(self) -> int:
        """Number of random schedules besides the drawn one per example; 0 in real time."""

    def __call__(
        self,
        world_size: int,
        program: Program,
        schedule: DrawnSchedule | None = None,
        *,
        timeout: float | None = None,
        checksums: bool = False,
    ) -> Ended:
        """Run a program on some number of ranks.

        Args:
            world_size: Number of ranks.
            program: The program, which can be pickled.
            schedule: Order of events and delays in virtual time; ignored in real time.
            timeout: Seconds of one wait; the bench's own if None.
            checksums: Whether the backend checks the bytes of every message.
        """


class Witness:
    """Wrapper of a law's program that reports its outcome on each rank, in other processes by files in a folder."""

    def __init__(self, program: Program, folder: Path | None):
        self._program, self._folder, self._pid = program, folder, os.getpid()
        self._here: dict[int, LawReport] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_here": {}}

    def __call__(self, communicator: Communicator) -> Any:
        """Run the program on one rank and record its result or error."""
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
        """Return the reports of all ranks that wrote one, by rank."""
        found = dict(self._here)
        for path in () if self._folder is None else self._folder.glob("*.pickle"):
            found[int(path.stem)] = pickle.loads(path.read_bytes())  # noqa: S301 - our own
        return found

    def _write(self, rank: int, report: LawReport) -> None:
        try:
            content = pickle.dumps(report)
        except Exception:  # an error or a result that cannot be pickled is reported as text
            error = None if report.error is None else RuntimeError(f"{type(report.error).__name__}: {report.error}")
            content = pickle.dumps(LawReport(report.tale, repr(report.result), error, is_over=True))
        assert self._folder is not None
        part = self._folder / f"{rank}.part"
        part.write_bytes(content)
        part.rename(self._folder / f"{rank}.pickle")


@define(eq=False, slots=False)
class OnBackend:
    """Bench of a backend in real time, used through its ``run`` only.

    Args:
        backend: The registered class; called with ``timeout`` and ``checksums``.
        name: Name in messages; the class's name if empty.
        examples: Programs per law; 0 is 6 for threads and 3 for processes.
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
        """Whether its ranks are threads or processes, found by running one."""
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
        """Run a program in real time, see ``Bench``; the schedule is ignored.

        Raises:
            Hang: If the run has not ended ``PATIENCE_S`` after the timeout.
        """
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
    """Bench in virtual time by a drawn schedule: every order of events can be drawn, shrunk and replayed.

    Args:
        examples: Programs per law.
        stirred: Number of random schedules per example besides the drawn one, longer than Hypothesis usually draws.
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
        """Run a program in virtual time, see ``Bench``.

        Raises:
            LawBroken: If buffers are left over after a successful run.
        """
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
    """Return the bench of a backend: in virtual time for ``Simulated``, else in real time.

    Args:
        backend: The registered class.
        examples: Programs per law; 0 for the default.
        timeout: Seconds of one wait in real time; 0 for the default.
    """
    if backend is Simulated:
        return OnSimulator(examples=examples or 40)
    return OnBackend(backend, examples=examples, timeout=timeout or TIMEOUT_S)


def _process(communicator: Communicator) -> int:
    return os.getpid()
