"""Laws of communication, as tests for authors of a communication backend.

::

    from vitrail.testing.comm import CommLaws

    class TestTcp(CommLaws):  # in a test file: pytest checks every law
        backend = Tcp  # the class that is registered in the slot "comm"

or, without pytest, ``python -m vitrail.testing.comm my_package:Tcp``. A broken law is reported with the smallest
program found that breaks it, rank by rank, and with the command that runs this program again.
"""

from vitrail.testing.comm import laws  # fills LAWS
from vitrail.testing.comm.bench import Bench, Ended, LawBroken, OnBackend, OnSimulator, bench_of
from vitrail.testing.comm.judging import LAWS, CommLaws, Law, Watched, law

__all__ = [
    "LAWS",
    "Bench",
    "CommLaws",
    "Ended",
    "Law",
    "LawBroken",
    "OnBackend",
    "OnSimulator",
    "Watched",
    "bench_of",
    "law",
    "laws",
]
