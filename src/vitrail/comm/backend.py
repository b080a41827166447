"""What is registered in the slot ``comm``, and what is checked of it."""

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
    """A way for ranks to come about and to talk: a frozen attrs class whose fields all have defaults.

    The class is called with its fields by name, e.g. ``Tcp(timeout=60.0)``; making one starts nothing. One object may
    run several programs, one after another, which never see each other's messages.

    Attributes:
        timeout: Seconds of one wait, not of a run; handed to every rank's ``RankCommunicator``.
        checksums: Whether the bytes of every message are checked; handed on likewise.
    """

    @property
    def timeout(self) -> float:
        """Seconds of one wait."""

    @property
    def checksums(self) -> bool:
        """Whether the bytes of messages are checked."""

    def run(self, world_size: int, program: Callable[[RankCommunicator], T], run_id: str = "run") -> list[T]:
        """Run a program once on every rank, all at the same time, and wait for all of them.

        Every rank makes its end of the transport, a ``RankCommunicator`` on it, and calls
        ``vitrail.comm.outcome.guarded(communicator, program)``, which closes after a program that ended well and tells
        the other ranks of one that raised.

        Args:
            world_size: Number of ranks, 1 or more; 1 must work, and waits for nobody.
            program: Called with each rank's communicator, in the thread that made it. Where ranks are threads it may be
                any function; where they are processes it must be one that can be pickled, and what it returns, too.
            run_id: Handed to every ``RankCommunicator``; ranks with different ids refuse each other.

        Returns:
            What the program returned, by rank: rank 0 first, whoever ended first.

        Raises:
            BaseException: What the program raised on the culprit's rank, of the same type. ``CommTimeout`` and
                ``ProtocolError`` are such errors, too. It is raised when all ranks have ended.
            CommAborted: If the culprit could not tell, since its process died.
        """


class JoiningBackend(Backend, Protocol):
    """A backend whose ranks are processes: it can also join those that a launcher has started.

    With a method ``join``, ``vitrail sample --ranks N --comm NAME`` starts N processes, each of which joins; without,
    it calls ``run`` with a program that cannot be pickled.
    """

    def join(self, environment: RankEnvironment, run_id: str = "run") -> RankCommunicator:
        """The communicator of this process, when all ranks are there.

        Args:
            environment: Which rank this is, how many there are, and a host and port at which rank 0, or the launcher
                (``store_is_hosted``), may be met.
            run_id: Alike on all ranks.

        Raises:
            CommError: If the ranks do not find each other within the timeout, naming who is missing.
        """


def check_backend(where: str, cls: type) -> None:
    """Refuse a class that cannot be a backend.

    Args:
        where: What the message begins with: the plugin, the slot and the name.
        cls: A frozen attrs class with ``run``.

    Raises:
        RegistrationError: Naming the field or the argument that is missing.
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
