"""A rank's outermost frame: whatever ends a rank ends the run on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from vitrail.comm.communicator import RankCommunicator
from vitrail.errors import CommAborted

T = TypeVar("T")


def guarded(communicator: RankCommunicator, program: Callable[[RankCommunicator], T]) -> T:
    """Run a program; tell the other ranks if it raises, wait for them if it does not.

    Raises:
        BaseException: What the program raised.
    """
    try:
        result = program(communicator)
        communicator.close()
    except CommAborted:
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        communicator.abort(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        raise
    return result
