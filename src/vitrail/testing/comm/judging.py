"""Laws: statements about every backend, checked on programs that Hypothesis draws, shrinks and replays."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import hypothesis
import pytest
from attrs import define, field, frozen
from hypothesis import HealthCheck, Verbosity, given, settings
from hypothesis import strategies as st

from vitrail.testing.comm.bench import Bench, Ended, Hang, Kind, LawBroken, Program, bench_of, expect
from vitrail.testing.comm.payloads import Payload
from vitrail.testing.comm.schedules import DrawnSchedule
from vitrail.testing.comm.telling import RecordedChannel, RecordedCommunicator, show

EVERYWHERE: tuple[Kind, ...] = ("virtual", "threads", "processes")
REAL: tuple[Kind, ...] = ("threads", "processes")
SHRINK_TRIES = 200  # examples tried to shrink the first failure
SHRINK_S = 10.0  # the same in seconds, since an example of a broken backend may last as long as a timeout
BLOB = re.compile(r"@reproduce_failure\('[^']*', b'([^']*)'\)")
LAWS: dict[str, Law] = {}  # by id, in order of definition

Judge = Callable[..., None]


@define
class Watched:
    """A bench that records the runs of one example."""

    bench: Bench
    runs: list[Ended] = field(factory=list)

    @property
    def kind(self) -> Kind:
        """Kind of the bench's ranks."""
        return self.bench.kind

    def __call__(
        self, world_size: int, program: Program, schedule: DrawnSchedule | None = None, **options: Any
    ) -> Ended:
        """Run a program on the bench, see ``Bench``, and record how it ended.

        Args:
            world_size: Number of ranks.
            program: The program, which can be pickled.
            schedule: Order of events and delays in virtual time.
            options: ``timeout`` and ``checksums`` of ``Bench``.
        """
        ended = self.bench(world_size, program, schedule, **options)
        self.runs.append(ended)
        return ended


@define
class Search:
    """State of one search for a failing example: the failures so far and their transcripts."""

    law: Law
    bench: Bench
    failed: dict[str, tuple[LawBroken, str]] = field(factory=dict)  # by the ``repr`` of the drawn arguments
    tried: int = 0  # number of examples
    seen: str = ""  # key in ``failed`` of the last failing example
    since: float = 0.0  # time of the first failure
    first: int = 0  # number of examples when it happened

    def example(self, **drawn: Any) -> None:
        """Check one example; one that failed before fails again, so that failures that depend on timing are reported.

        Raises:
            LawBroken: If the law does not hold.
        """
        key = repr(drawn)
        if key in self.failed:
            self.seen = key
            raise self.failed[key][0]
        if self.failed and (self.tried - self.first >= SHRINK_TRIES or time.monotonic() - self.since > SHRINK_S):
            return
        self.tried += 1
        watched = Watched(self.bench)
        try:
            self.law.judge(watched, **drawn)
            for number in range(self.bench.stirred if "schedule" in drawn else 0):
                watched.runs = []
                self.law.judge(watched, **drawn | {"schedule": drawn["schedule"].stirred(number)})
        except Exception as error:
            broken = error if isinstance(error, LawBroken) else LawBroken(f"{type(error).__name__}: {error}")
            if not self.failed:
                self.since, self.first = time.monotonic(), self.tried
            self.failed[key] = broken.with_traceback(error.__traceback__), _story(watched.runs)
            self.seen = key
            raise self.failed[key][0] from (None if broken is error else error)

    def text(self, blob: str | None) -> str:
        """Format the smallest failing program with the command that replays it, given Hypothesis' blob."""
        broken, story = self.failed[self.seen]
        backend = self.bench.address
        again = f" --replay {blob}" if blob else ""
        return "\n\n".join(
            [
                f"{self.bench.name} breaks law {self.law.id}: {self.law.statement}",
                str(broken),
                f"the smallest program found ({self.tried} were tried on the way)\n\n{story}",
                f"to run it again\n\n  python -m vitrail.testing.comm {backend} --law {self.law.id}{again}",
            ]
        )


def _story(runs: list[Ended]) -> str:
    if len(runs) == 1:
        return runs[0].report_text()
    return "\n".join(f"--- run {number}\n{run.report_text()}" for number, run in enumerate(runs, 1))


@frozen(eq=False)
class Law:
    """A statement that every backend must satisfy.

    Attributes:
        id: Short, permanent identifier, e.g. ``s2-snapshot``.
        judge: Called with a bench and the drawn arguments; raises if the law does not hold.
        drawn: A Hypothesis strategy for each argument of ``judge`` but the first.
        kinds: Kinds of ranks that it applies to: some laws need processes, or real time.
    """

    id: str
    judge: Judge
    drawn: Mapping[str, st.SearchStrategy[Any]]
    kinds: tuple[Kind, ...] = EVERYWHERE

    @property
    def statement(self) -> str:
        """The law in one sentence: the first line of the docstring of ``judge``."""
        return (self.judge.__doc__ or self.id).strip().partition("\n")[0].rstrip(".")

    def check(self, bench: Bench, *, examples: int = 0, seed: int | None = None, replay: str = "") -> int:
        """Search for a program that breaks the law.

        Args:
            bench: The bench of the backend.
            examples: Number of programs; 0 for the bench's own number.
            seed: Seed of the draws; None for the loaded profile of Hypothesis.
            replay: The ``--replay`` text of an earlier message; only that example is run.

        Returns:
            Number of programs that were run.

        Raises:
            LawBroken: With the smallest program found that breaks it, or if a replayed one no longer fails.
        """
        __tracebackhide__ = True
        search = Search(self, bench)
        test = self._as_test(search, examples or bench.examples, seed)
        if replay:
            test = hypothesis.reproduce_failure(hypothesis.__version__, replay.encode())(test)
        try:
            test()
        except Hang as hang:
            raise LawBroken(f"{bench.name} breaks law {self.id}: {self.statement}\n\n{hang}") from None
        except hypothesis.errors.DidNotReproduce as error:
            raise LawBroken(f"law {self.id}: this program does not fail any more") from error
        except Exception as error:
            if not search.failed:
                raise
            found = BLOB.search("\n".join(getattr(error, "__notes__", ())))
            raise LawBroken(search.text(replay or (found[1] if found else None))) from None
        return search.tried

    def _as_test(self, search: Search, examples: int, seed: int | None) -> Callable[[], None]:
        def example(**drawn: Any) -> None:
            search.example(**drawn)

        functools.update_wrapper(example, self.judge, assigned=("__name__", "__qualname__", "__module__"))
        del example.__dict__["__wrapped__"]
        test = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )(given(**self.drawn)(example))
        return test if seed is None else hypothesis.seed(seed)(test)


def law(id: str, *kinds: Kind, **drawn: st.SearchStrategy[Any]) -> Callable[[Judge], Law]:  # noqa: A002
    """Decorate a function ``judge(run, **drawn)`` as a law and add it to ``LAWS``.

    The first line of the function's docstring is the law's statement in messages.

    Args:
        id: Identifier of the law.
        kinds: Kinds of ranks that it applies to; all if none is given.
        drawn: A Hypothesis strategy for each argument of the function but the first.
    """

    def decorate(judge: Judge) -> Law:
        assert id not in LAWS, f"two laws are called {id}"
        LAWS[id] = Law(id, judge, drawn, kinds or EVERYWHERE)
        return LAWS[id]

    return decorate


def same(got: Any, wanted: Any, what: str) -> None:
    """Assert that two values are equal.

    Args:
        got: The value.
        wanted: The expected value.
        what: Name of the value in the message.

    Raises:
        LawBroken: If they differ; the message shows both.
    """
    expect(got == wanted, f"{what} is {show(got)}\n  where it must be {show(wanted)}" if got != wanted else "")


def opened(
    communicator: RecordedCommunicator, payload: Payload, name: str = "a", src: int = 0, bound: int = 1
) -> RecordedChannel:
    """Open a channel for a payload's tensors.

    Args:
        communicator: The rank's communicator.
        payload: Gives shape and dtype.
        name: Name of the channel.
        src: The rank that publishes.
        bound: Maximum staleness in versions.
    """
    return communicator.channel(name, src=src, shape=payload.shape, dtype=payload.dtype, max_staleness=bound)


@functools.cache
def _bench(backend: Callable[..., Any], examples: int, timeout: float) -> Bench:
    return bench_of(backend, examples, timeout)


class CommLaws:
    """One test per law on ``backend``; name the subclass ``Test...``.

    Attributes:
        backend: The registered class, or a callable with ``timeout`` and ``checksums`` that returns a backend.
        examples: Programs per law; 0 is 40 in virtual time, 6 for threads, 3 for processes.
        timeout: Seconds of one wait; 0 for the default. Must exceed any pause of a busy machine.
    """

    backend: ClassVar[Callable[..., Any]]
    examples: ClassVar[int] = 0
    timeout: ClassVar[float] = 0.0

    @classmethod
    def bench(cls) -> Bench:
        """Return the bench of the backend, cached."""
        return _bench(cls.__dict__.get("backend") or cls.backend, cls.examples, cls.timeout)

    @pytest.mark.parametrize("law_id", LAWS)
    def test_law(self, law_id: str) -> None:
        """Check one law, or skip it if it does not apply to the backend's kind of ranks."""
        __tracebackhide__ = True
        bench = self.bench()
        if bench.kind not in LAWS[law_id].kinds:
            pytest.skip(f"about {' and '.join(LAWS[law_id].kinds)}; the ranks of {bench.name} are {bench.kind}")
        LAWS[law_id].check(bench)
