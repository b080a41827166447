"""Laws: statements about a backend, tried on programs that Hypothesis draws, shrinks and replays."""

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
SHRINK_S = 10.0  # from the first failure; what was not found smaller by then is told as it is
BLOB = re.compile(r"@reproduce_failure\('[^']*', b'([^']*)'\)")
LAWS: dict[str, Law] = {}  # by id, in the order in which they are written down

Judge = Callable[..., None]


@define
class Watched:
    """A bench that keeps how the runs of one example ended."""

    bench: Bench
    runs: list[Ended] = field(factory=list)

    @property
    def kind(self) -> Kind:
        """What its ranks are."""
        return self.bench.kind

    def __call__(
        self, world_size: int, program: Program, schedule: DrawnSchedule | None = None, **options: Any
    ) -> Ended:
        """Run a program."""
        ended = self.bench(world_size, program, schedule, **options)
        self.runs.append(ended)
        return ended


@define
class Search:
    """One look for a failing example: what failed so far, and how it read."""

    law: Law
    bench: Bench
    failed: dict[str, tuple[LawBroken, str]] = field(factory=dict)  # by what was drawn
    tried: int = 0
    seen: str = ""  # the last example that failed
    since: float = 0.0

    def example(self, **drawn: Any) -> None:
        """Judge one; what has failed before fails again, so that a failure that depends on timing is told, too."""
        key = repr(drawn)
        if key in self.failed:
            self.seen = key
            raise self.failed[key][0]
        if self.failed and time.monotonic() - self.since > SHRINK_S:
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
            self.since = self.since or time.monotonic()
            self.failed[key] = broken.with_traceback(error.__traceback__), _story(watched.runs)
            self.seen = key
            raise self.failed[key][0] from (None if broken is error else error)

    def text(self, blob: str | None) -> str:
        """The smallest program that failed, to be read."""
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
    """A statement that holds for every backend.

    Attributes:
        id: Short and for ever, e.g. ``s2-snapshot``.
        judge: Called with a bench and what was drawn; raises if the law does not hold.
        drawn: A strategy for every argument of ``judge`` but the first.
        kinds: Where it can be tried: some need processes, or time that is real.
    """

    id: str
    judge: Judge
    drawn: Mapping[str, st.SearchStrategy[Any]]
    kinds: tuple[Kind, ...] = EVERYWHERE

    @property
    def statement(self) -> str:
        """The law in a sentence."""
        return (self.judge.__doc__ or self.id).strip().partition("\n")[0].rstrip(".")

    def check(self, bench: Bench, *, examples: int = 0, seed: int | None = None, replay: str = "") -> int:
        """Look for a program that breaks it.

        Args:
            bench: What to try it on.
            examples: How many to try; 0 for the bench's own number.
            seed: Of what is drawn; None for the loaded profile of Hypothesis.
            replay: The end of an earlier message's last line: that one example is run again, and nothing else.

        Returns:
            How many were tried.

        Raises:
            LawBroken: With the smallest program found.
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
    """Make a law of a function ``judge(run, **drawn)``; its docstring is the statement.

    Args:
        id: Of the law.
        kinds: Where it can be tried; everywhere if none is given.
        drawn: A strategy for every argument.
    """

    def decorate(judge: Judge) -> Law:
        assert id not in LAWS, f"two laws are called {id}"
        LAWS[id] = Law(id, judge, drawn, kinds or EVERYWHERE)
        return LAWS[id]

    return decorate


def same(got: Any, wanted: Any, what: str) -> None:
    """Judge that two values are equal.

    Raises:
        LawBroken: With both, if they are not.
    """
    expect(got == wanted, f"{what} is {show(got)}\n  where it must be {show(wanted)}" if got != wanted else "")


def opened(
    communicator: RecordedCommunicator, payload: Payload, name: str = "a", src: int = 0, bound: int = 1
) -> RecordedChannel:
    """A channel that carries a payload's tensors."""
    return communicator.channel(name, src=src, shape=payload.shape, dtype=payload.dtype, max_staleness=bound)


@functools.cache
def _bench(backend: Callable[..., Any], examples: int, timeout: float) -> Bench:
    return bench_of(backend, examples, timeout)


class CommLaws:
    """Every law, tried on ``backend``; name the subclass ``Test...``.

    Attributes:
        backend: The class, as it is registered; or anything that is called with ``timeout`` and ``checksums`` and gives
            something with ``run``.
        examples: How many programs each law tries; 0 for 40 where time is virtual, 6 for threads, 3 for processes.
        timeout: Seconds of one wait in the laws; longer than the machine is ever busy with something else.
    """

    backend: ClassVar[Callable[..., Any]]
    examples: ClassVar[int] = 0
    timeout: ClassVar[float] = 0.0

    @classmethod
    def bench(cls) -> Bench:
        """What the laws are tried on."""
        return _bench(cls.__dict__.get("backend") or cls.backend, cls.examples, cls.timeout)

    @pytest.mark.parametrize("law_id", LAWS)
    def test_law(self, law_id: str) -> None:
        """One law."""
        __tracebackhide__ = True
        bench = self.bench()
        if bench.kind not in LAWS[law_id].kinds:
            pytest.skip(f"about {' and '.join(LAWS[law_id].kinds)}; the ranks of {bench.name} are {bench.kind}")
        LAWS[law_id].check(bench)
