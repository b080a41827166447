"""The protocol of a communicator backend (slot ``comm``), and the checks at registration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs

from vitrail.errors import RegistrationError

if TYPE_CHECKING:
    from vitrail.comm.communicator import RankCommunicator
    from vitrail.comm.environment import RankEnvironment

T = TypeVar("T")
OPTIONS = ("timeout", "checksums")
SIGNATURES = {"run": ("world_size", "program", "run_id"), "join": ("environment", "run_id")}


class Backend(Protocol):
    """A way to start ranks and connect them: a frozen attrs class whose fields all have defaults.

    The class is called with its fields by name, e.g. ``Tcp(timeout=60.0)``; making one starts nothing. One object may
    run several programs, one after another, which never see each other's messages.

    Attributes:
        timeout: Timeout of one wait in seconds, not of a run; passed to every rank's ``RankCommunicator``.
        checksums: Whether every message carries a checksum; passed likewise.
    """

    @property
    def timeout(self) -> float:
        """Timeout of one wait, seconds."""

    @property
    def checksums(self) -> bool:
        """Whether messages carry a checksum."""

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program once on every rank, all at the same time, and wait for all of them.

        Every rank creates its end of the transport and a ``RankCommunicator`` on it, and calls
        ``vitrail.comm.outcome.guarded(communicator, program)``, which closes the communicator after the program and
        informs the other ranks if it raised.

        Args:
            world_size: Number of ranks, 1 or more; 1 must work without waiting.
            program: Called with each rank's communicator, in the thread that made it. Where ranks are threads it may be
                any function; where they are processes, it and its result must be picklable.
            run_id: Passed to every ``RankCommunicator``; ranks with different ids refuse each other.

        Returns:
            The program's results, in the order of ranks.

        Raises:
            BaseException: What the program raised on the rank that failed first, of the same type, ``CommTimeout`` and
                ``ProtocolError`` included; raised when all ranks have ended.
            CommAborted: If that rank's process died without a report.
        """


class JoiningBackend(Backend, Protocol):
    """A backend whose ranks are processes, which can also join ranks that a launcher has started.

    With a method ``join``, ``vitrail sample --ranks N --comm NAME`` starts N processes, each of which joins; without,
    it calls ``run`` with a program that cannot be pickled.
    """

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """Return the communicator of this process, once all ranks are connected.

        Args:
            environment: Number of this rank, number of ranks, and the host and port at which rank 0, or the launcher
                (``store_is_hosted``), is reached.
            run_id: Equal on all ranks.

        Raises:
            CommError: If the ranks do not find each other within the timeout; names the missing ones.
        """


def check_backend(where: str, cls: type) -> None:
    """Refuse a class that cannot be a backend.

    Args:
        where: Beginning of the message: the plugin, the slot and the name.
        cls: A frozen attrs class with ``run``.

    Raises:
        RegistrationError: Naming the missing field, default or argument.
    """
    fields = {each.name: each for each in attrs.fields(cls)}
    missing = [name for name in OPTIONS if name not in fields]
    if missing:
        raise RegistrationError(
            f"{where}: {cls.__name__} lacks the field{'s' * (len(missing) > 1)} {', '.join(missing)}"
        )
    bare = [name for name, each in fields.items() if each.init and each.default is attrs.NOTHING]
    if bare:
        raise RegistrationError(f"{where}: {cls.__name__} must have a default for {', '.join(bare)}")
    for name, arguments in SIGNATURES.items():
        method = inspect.getattr_static(cls, name, None)
        if method is not None:
            _check_signature(f"{where}: {cls.__name__}.{name}", method, arguments)


def _check_signature(where: str, method: Any, arguments: tuple[str, ...]) -> None:
    wanted = f"{', '.join(arguments[:-1])}, {arguments[-1]}='run'"
    try:
        inspect.signature(method).bind(None, *arguments[:-1])
        inspect.signature(method).bind(None, *arguments)
    except TypeError as error:
        raise RegistrationError(f"{where} must take ({wanted}): {error}") from error
