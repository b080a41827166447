"""The laws as pytest tests: a class to subclass for a backend."""

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
