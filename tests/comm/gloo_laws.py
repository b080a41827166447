"""Laws of gloo ranks: tests of tens of examples on a pool of processes."""

import functools
import os

from hypothesis import given, settings
from hypothesis import strategies as st

PROFILE = os.environ.get("VITRAIL_PROFILE", "fast")
EXAMPLES = {"fast": 12, "ci": 40, "long": 500}[PROFILE]
WORLDS = st.sampled_from([2, 3])


def law(**drawn):
    """Make ``f(pool, **drawn)`` a test of tens of examples."""

    def decorate(function):
        def test(pool):
            def example(**drawn_values):
                function(pool, **drawn_values)

            functools.update_wrapper(example, function, assigned=("__name__", "__qualname__", "__module__"))
            del example.__wrapped__
            settings(max_examples=EXAMPLES)(given(**drawn)(example))()

        test.__name__, test.__doc__, test.__module__ = function.__name__, function.__doc__, function.__module__
        return test

    return decorate
