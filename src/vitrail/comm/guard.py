"""A rank's outermost frame: whatever ends a rank ends the run on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vitrail.comm.backends.virtual_schedule import SimulatedCrash
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.transport import describe_error
from vitrail.errors import CommAborted, CommError

T = TypeVar("T")


def guarded(communicator: RankCommunicator, program: Callable[[RankCommunicator], T]) -> T:
    """Run a program; tell the other ranks if it raises, wait for them if it does not.

    Raises:
        BaseException: What the program raised.
    """
    try:
        result = program(communicator)
        communicator.check()
        communicator.close()
    except (CommAborted, SimulatedCrash):  # the others know, or must find out
        raise
    except BaseException as error:
        communicator.abort(describe_error(error))
        if isinstance(error, CommError):
            error.is_known = True
        raise
    return result
