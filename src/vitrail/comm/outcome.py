"""Ends of ranks: the outermost frame of a rank, and the outcome of a run whose ranks are in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import frozen

from vitrail.comm.backends.virtual_schedule import SimulatedCrash
from vitrail.comm.communicator import RankCommunicator
from vitrail.comm.trace.recording import Recorder
from vitrail.comm.transport import Abort, describe_error
from vitrail.errors import CommAborted, CommError

T = TypeVar("T")


@frozen(eq=False)
class RankOutcome(Generic[T]):
    """Outcome of a run on every rank.

    Attributes:
        results: Results of the ranks that finished.
        errors: Exceptions of the ranks that raised; a simulated crash is a ``SimulatedCrash``.
        traces: Recorders by rank.
        makespan: Duration in seconds of the backend's clock.
        abort: The first abort, if any.
        left_over: Operations, as (domain, number), whose buffers a rank still holds; empty after a clean run.
    """

    results: dict[int, T]
    errors: dict[int, BaseException]
    traces: list[Recorder]
    makespan: float
    abort: Abort | None
    left_over: tuple[tuple[str, int], ...] = ()

    def values(self) -> list[T]:
        """Return the results in the order of ranks.

        Raises:
            BaseException: The first cause, if a rank raised.
        """
        if self.errors:
            raise first_cause(self.errors, self.abort)
        return [self.results[rank] for rank in sorted(self.results)]


def first_cause(errors: dict[int, BaseException], abort: Abort | None) -> BaseException:
    """Return the original error: the culprit's, if it is not merely a ``CommAborted``."""
    own = {rank: error for rank, error in errors.items() if not isinstance(error, CommAborted)}
    if abort is not None and abort.culprit in own:
        return own[abort.culprit]
    return own[min(own)] if own else errors[min(errors)]


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
