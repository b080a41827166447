"""A pool of gloo ranks for each module; tells how many schedules were explored."""

import time

import pool as pools
import pytest

from vitrail.testing.comm import schedules


def pytest_terminal_summary(terminalreporter):
    total, seconds = sum(schedules.explored.values()), time.monotonic() - schedules.begun
    if total:
        by = ", ".join(f"{count:,} {name}" for name, count in schedules.explored.items())
        terminalreporter.write_line(f"schedules explored: {total:,} ({by}), {total / seconds:.0f} a second")


@pytest.fixture(scope="module")
def pool():
    made = pools.Pool(3)
    yield made
    made.close()
