"""A pytest plugin that checks the laws on a backend without a test file, and reports failures without tracebacks.

``pytest -p vitrail.testing.comm.plugin --vitrail-comm MODULE:CLASS``, or, in the outermost ``conftest.py``,
``pytest_plugins = ["vitrail.testing.comm.plugin"]``. It has no entry point, so that it is loaded on request only.
"""

from __future__ import annotations

from typing import Any

import pytest

from vitrail.testing.comm.__main__ import bench_at
from vitrail.testing.comm.bench import Bench, LawBroken
from vitrail.testing.comm.judging import LAWS, Law


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that select backends and the number of examples."""
    group = parser.getgroup("vitrail", "laws of communication")
    text = "a communicator backend that the laws are tried on; may be given again"
    group.addoption("--vitrail-comm", action="append", default=[], metavar="MODULE:CLASS", help=text)
    group.addoption("--vitrail-comm-examples", type=int, default=0, metavar="N", help="programs that each law tries")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Append a test for every law and selected backend; a hook of pytest, which gives the arguments."""
    for address in config.getoption("--vitrail-comm"):
        bench = bench_at(address, config.getoption("--vitrail-comm-examples"))
        for law in LAWS.values():
            items.append(LawItem.from_parent(session, name=f"{bench.name}[{law.id}]", bench=bench, law=law))


class LawItem(pytest.Item):
    """Test item of one law on one backend; skipped if the law does not apply to the backend's kind of ranks."""

    def __init__(self, *, bench: Bench, law: Law, **options: Any):
        super().__init__(**options)
        self.bench, self.law = bench, law
        if bench.kind not in law.kinds:
            reason = f"about {' and '.join(law.kinds)}; the ranks of {bench.name} are {bench.kind}"
            self.add_marker(pytest.mark.skip(reason=reason))

    def runtest(self) -> None:
        """Check the law.

        Raises:
            LawBroken: If it does not hold.
        """
        self.law.check(self.bench)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the message of a broken law without traceback; other errors as pytest formats them."""
        if isinstance(excinfo.value, LawBroken):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int, str]:
        """Return path, line and heading of the item, with the law's statement."""
        return self.path, 0, f"{self.name}: {self.law.statement}"
