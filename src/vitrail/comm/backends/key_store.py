"""A run's store: few small words by name, through which ranks meet and learn of an abort.

A thread of the process that keeps it answers each connection; whoever does not prove to know the run's secret is
refused before the first word. It is made without torch, so that it is there before anybody has loaded that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Sequence

from attrs import evolve, frozen

from vitrail.comm.backends.store_wire import ForeignRunError, admit, enter, keeper_of, receive, send
from vitrail.errors import CommError

LOOPBACK = "127.0.0.1"
STRANGE_S = 2.0  # a port that another run keeps may become free so soon
PAUSE_S = 0.05  # between two tries
ARGUMENTS = {b"set": 2, b"get": 1, b"swap": 3, b"add": 2, b"drop": 1}  # of an operation, its key included
Operation = tuple[bytes, ...]
Answers = list[bytes | None]


@frozen
class Words:
    """The words of a store whose names begin alike.

    Attributes:
        ask: Performs operations in one go; each has an answer, None for a word that is not there.
        prefix: What all names here begin with.
    """

    ask: Callable[[Sequence[Operation]], Answers]
    prefix: str = ""

    def within(self, name: str) -> Words:
        """A part of these."""
        return evolve(self, prefix=f"{self.prefix}{name}/")

    def get(self, key: str) -> bytes | None:
        """A word; None if it is not there."""
        return self.ask([self.getting(key)])[0]

    def set(self, key: str, value: str | bytes) -> None:
        """Write a word."""
        self.ask([self.setting(key, value)])

    def swap(self, key: str, expected: bytes, value: bytes) -> bytes:
        """Write a word if it is ``expected``, or not there and nothing is expected; gives the one that counts now."""
        return self.ask([(b"swap", self._named(key), expected, value)])[0] or b""

    def add(self, key: str, amount: int) -> int:
        """Add to a word that is a number, 0 if it is not there; gives the sum."""
        return int(self.ask([(b"add", self._named(key), str(amount).encode())])[0] or 0)

    def drop(self, key: str) -> bool:
        """Forget a word; whether it was there."""
        return self.ask([(b"drop", self._named(key))])[0] is not None

    def getting(self, key: str) -> Operation:
        """Of ``get``, to be asked together with others."""
        return (b"get", self._named(key))

    def setting(self, key: str, value: str | bytes) -> Operation:
        """Of ``set``, to be asked together with others."""
        return (b"set", self._named(key), value.encode() if isinstance(value, str) else value)

    def _named(self, key: str) -> bytes:
        return f"{self.prefix}{key}".encode()


class StoreServer:
    """A store that this process keeps.

    Args:
        listener: Where it can be reached; it is closed with the store.
        secret: Of the run.
        name: What strangers may know of it.
    """

    def __init__(self, listener: socket.socket, secret: str, name: str):
        self.words = Words(self.perform)
        self.port: int = listener.getsockname()[1]
        self.strangers: list[str] = []  # names of those that were refused
        self._listener, self._secret, self._name = listener, secret, name
        self._known: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._guests: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._listen, name="store", daemon=True).start()

    def perform(self, operations: Sequence[Operation]) -> Answers:
        """Perform operations, all of them before anybody else's."""
        with self._lock:
            return [self._perform(*operation) for operation in operations]

    def close(self) -> None:
        """End; whoever is connected sees it at once."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that listens
        self._listener.close()
        for guest in list(self._guests):
            with contextlib.suppress(OSError):
                guest.shutdown(socket.SHUT_RDWR)

    def _perform(self, kind: bytes, key: bytes, *arguments: bytes) -> bytes | None:
        now = self._known.get(key)
        if kind == b"set":
            self._known[key] = arguments[0]
            return b""
        if kind == b"swap":
            expected, value = arguments
            if now == expected or (now is None and not expected):
                now = self._known[key] = value
            return expected if now is None else now
        if kind == b"add":
            now = self._known[key] = str(int(now or b"0") + int(arguments[0])).encode()
        if kind == b"drop":
            self._known.pop(key, None)
        return now

    # ------------------------------------------------------------------ threads

    def _listen(self) -> None:
        while not self._closed:
            try:
                guest, _ = self._listener.accept()
            except OSError as error:
                if self._closed or error.errno in (errno.EBADF, errno.EINVAL):
                    return
                time.sleep(PAUSE_S)  # e.g. too many open files: those that are connected go on
                continue
            threading.Thread(target=self._serve, args=(guest,), name="store-guest", daemon=True).start()

    def _serve(self, guest: socket.socket) -> None:
        with guest, contextlib.suppress(OSError, ValueError):
            guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                admit(guest, self._secret, self._name)
            except ForeignRunError as error:
                self.strangers.append(str(error))
                return
            self._guests.add(guest)
            try:
                while not self._closed:
                    answers = self.perform(unpacked(receive(guest)))
                    send(guest, [b"" if answer is None else b"+" + answer for answer in answers])
            finally:
                self._guests.discard(guest)


def unpacked(fields: Sequence[bytes]) -> list[Operation]:
    """The operations of a frame.

    Raises:
        ValueError: If it holds something else.
    """
    found, begin = [], 0
    while begin < len(fields):
        end = begin + 1 + ARGUMENTS.get(fields[begin], len(fields))
        if end > len(fields):
            raise ValueError(f"no operation: {fields[begin]!r}")
        found.append(tuple(fields[begin:end]))
        begin = end
    return found


class StoreClient:
    """A connection to a run's store, which several threads may use.

    Args:
        address: Where the store is.
        port: Its port.
        secret: Of the run.
        name: What strangers may know of it.
        timeout: Seconds in which it must answer.

    Raises:
        CommError: If nobody answers there, or another run does.
    """

    def __init__(self, address: str, port: int, secret: str, name: str, timeout: float):
        self.words = Words(self.ask)
        self._lock = threading.Lock()
        self._connection = _reached(address, port, secret, name, timeout)

    def ask(self, operations: Sequence[Operation]) -> Answers:
        """Have the store perform operations.

        Raises:
            OSError: If the store is gone.
        """
        with self._lock:
            send(self._connection, [field for operation in operations for field in operation])
            answers = receive(self._connection)
        if len(answers) != len(operations):
            raise ConnectionError("the store answers something else")
        return [answer[1:] if answer else None for answer in answers]

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _reached(address: str, port: int, secret: str, name: str, timeout: float) -> socket.socket:
    """A connection whose greeting is over, tried for again and again."""
    end, strange = time.monotonic() + timeout, float("inf")  # until when; since when another run answers
    while True:
        try:
            return _greeted(address, port, secret, name, max(PAUSE_S, end - time.monotonic()))
        except ForeignRunError as error:
            strange = min(strange, time.monotonic())
            if time.monotonic() > min(end, strange + STRANGE_S):
                raise CommError(
                    f"port {port} of {address} is kept by {error}, not by this run ({name}); give this run a port of "
                    "its own with MASTER_PORT"
                ) from error
        except OSError as error:
            if time.monotonic() > end:
                raise CommError(
                    f"the run's store at {address}:{port} did not answer within {timeout:.3g} s; does the launcher or "
                    "rank 0 run there, and can this host reach it? It listens where MASTER_ADDR leads on its own host "
                    f"({error})"
                ) from error
        time.sleep(PAUSE_S)


def _greeted(address: str, port: int, secret: str, name: str, timeout: float) -> socket.socket:
    connection = socket.create_connection((address, port), timeout=timeout)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        enter(connection, secret, name, timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def listener_at(address: str = LOOPBACK, port: int = 0) -> socket.socket:
    """A socket for a store that listens at one address only, at any free port if it is 0.

    Raises:
        CommError: If the port is taken, naming by whom, or the address is none of this host.
    """
    end = time.monotonic() + STRANGE_S
    while True:
        try:
            family, place = _resolved(address, port)
            return socket.create_server(place[:2], family=family, backlog=128)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise CommError(
                    f"the run's store cannot listen at {address}, port {port}: {error.strerror or error}; set "
                    "MASTER_ADDR to an address of the host of rank 0"
                ) from error
            if time.monotonic() > end:
                raise CommError(
                    f"port {port} of {address} cannot be opened for the run's store, it is kept by "
                    f"{keeper_of(address, port)}; give this run a port of its own with MASTER_PORT"
                ) from error
        time.sleep(PAUSE_S)


def _resolved(address: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Where an address leads, by the older protocol if by both."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    family, *_, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, (str(place[0]), int(place[1]))


def process_name(name: str) -> str:
    """What strangers may know of a process: its run's name, its number and its host."""
    return f"{name}, process {os.getpid()} on {platform.node()}"
