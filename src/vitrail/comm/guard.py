"""The outermost frame of a rank: an exception on one rank ends the run on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vitrail.comm.backends.virtual_schedule import SimulatedCrash
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.transport import describe_error
from vitrail.errors import CommAborted, CommError

T = TypeVar("T")


def guarded(communicator: RankCommunicator, program: Callable[[RankCommunicator], T]) -> T:
    """Run a program; abort the run on all ranks if it raises, close the communicator if it does not.

    Raises:
        BaseException: What the program raised.
    """
    try:
        result = program(communicator)
        communicator.check()
        communicator.close()
    except (CommAborted, SimulatedCrash):  # the others know already, or must detect it
        raise
    except BaseException as error:
        communicator.abort(describe_error(error))
        if isinstance(error, CommError):
            error.is_known = True
        raise
    return result
