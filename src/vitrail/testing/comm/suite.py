"""The laws as tests of pytest: one class, to be subclassed for a backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from vitrail.testing.comm.bench import Bench, bench_of
from vitrail.testing.comm.judging import LAWS


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
