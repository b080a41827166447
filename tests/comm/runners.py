"""Backends behind one call, and laws that are tests of each of them."""

import functools
import os
import sys

import pytest
from hypothesis import given, settings

from vitrail.comm import InProcess
from vitrail.comm.backends.simulated import World
from vitrail.testing.comm import schedules

PROFILE = os.environ.get("VITRAIL_PROFILE", "fast")
SIMULATED = {"fast": 40, "ci": 100, "long": 400}[PROFILE]  # examples of a law
STIRRED = {"fast": 0, "ci": 1, "long": 5}[PROFILE]  # other schedules that each of them is tried with
THREADS = {"fast": 6, "ci": 20, "long": 150}[PROFILE]
TIMEOUT_S = 100.0  # virtual seconds
REAL_TIMEOUT_S = 20.0


class Simulator:
    """Ranks on a virtual clock, by a drawn schedule."""

    name, kind = "simulated", "virtual"
    examples = SIMULATED

    def __call__(self, world_size, program, schedule=None, *, timeout=TIMEOUT_S, checksums=False, run_id="run"):
        schedules.explored[self.kind] += 1
        chance = schedules.DrawnSchedule() if schedule is None else schedule
        return World(world_size, chance, timeout, checksums).run(program, run_id)


class Threads:
    """Ranks as threads that take turns as often as the interpreter lets them; what was drawn plays no part."""

    name, kind = "in-process", "threads"
    examples = THREADS

    def __call__(self, world_size, program, schedule=None, *, timeout=REAL_TIMEOUT_S, checksums=False, run_id="run"):
        schedules.explored[self.kind] += 1
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            backend = InProcess(timeout=min(timeout, REAL_TIMEOUT_S), checksums=checksums)
            return backend.attempt(world_size, program, run_id)
        finally:
            sys.setswitchinterval(before)


simulate, threads = Simulator(), Threads()


def law(*runners, **drawn):
    """Make a law ``f(run, **drawn)`` a test of some backends; of the simulator and of threads if none is named."""

    def decorate(function):
        @pytest.mark.parametrize("run", runners or (simulate, threads), ids=lambda runner: runner.name)
        def test(run):
            def example(**values):
                schedule = values.get("schedule")
                function(run, **values)
                for number in range(STIRRED if schedule is not None and run is simulate else 0):
                    function(run, **values | {"schedule": schedule.stirred(number)})

            functools.update_wrapper(example, function, assigned=("__name__", "__qualname__", "__module__"))
            del example.__wrapped__
            settings(max_examples=run.examples)(given(**drawn)(example))()

        test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
        return test

    return decorate


def clean(outcome):
    """The results by rank of a run in which nothing may go wrong and nothing may be left over."""
    values = outcome.values()
    assert outcome.abort is None
    assert outcome.left_over == ()
    return values
