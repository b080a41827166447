"""A run's store: short values by key, through which ranks meet and learn of an abort.

One thread per connection serves it in the process that hosts it; a client that does not prove that it knows the run's
secret is refused before its first operation. It does not import torch, so that it is available before torch is loaded.
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
STRANGE_S = 2.0  # time in which a port of another run may become free
PAUSE_S = 0.05  # between two attempts
ARGUMENTS = {b"set": 2, b"get": 1, b"swap": 3, b"add": 2, b"drop": 1}  # arguments of an operation, its key included
Operation = tuple[bytes, ...]
Answers = list[bytes | None]


@frozen
class Words:
    """The keys of a store with a common prefix.

    Attributes:
        ask: Perform operations atomically; each has an answer, None for a missing key.
        prefix: Common prefix of the keys.
    """

    ask: Callable[[Sequence[Operation]], Answers]
    prefix: str = ""

    def within(self, name: str) -> Words:
        """Return the keys with a longer prefix."""
        return evolve(self, prefix=f"{self.prefix}{name}/")

    def get(self, key: str) -> bytes | None:
        """Return a value; None if the key is missing."""
        return self.ask([self.getting(key)])[0]

    def set(self, key: str, value: str | bytes) -> None:
        """Set a value."""
        self.ask([self.setting(key, value)])

    def swap(self, key: str, expected: bytes, value: bytes) -> bytes:
        """Set a value if the current one is ``expected``, or missing and ``expected`` is empty.

        Args:
            key: The key.
            expected: Value to replace.
            value: New value.

        Returns:
            The value after the operation; ``expected`` if the key is missing.
        """
        return self.ask([(b"swap", self._named(key), expected, value)])[0] or b""

    def add(self, key: str, amount: int) -> int:
        """Add to an integer value, 0 if missing; return the sum."""
        return int(self.ask([(b"add", self._named(key), str(amount).encode())])[0] or 0)

    def drop(self, key: str) -> bool:
        """Delete a key; return whether it existed."""
        return self.ask([(b"drop", self._named(key))])[0] is not None

    def getting(self, key: str) -> Operation:
        """Return the operation of ``get``, to combine with others."""
        return (b"get", self._named(key))

    def setting(self, key: str, value: str | bytes) -> Operation:
        """Return the operation of ``set``, to combine with others."""
        return (b"set", self._named(key), value.encode() if isinstance(value, str) else value)

    def _named(self, key: str) -> bytes:
        return f"{self.prefix}{key}".encode()


class StoreServer:
    """A store hosted by this process.

    Args:
        listener: Listening socket; closed with the store.
        secret: Secret of the run.
        name: Name of the run that other processes may see.
    """

    def __init__(self, listener: socket.socket, secret: str, name: str):
        self.words = Words(self.perform)
        self.port: int = listener.getsockname()[1]
        self.strangers: list[str] = []  # names of refused clients
        self._listener, self._secret, self._name = listener, secret, name
        self._known: dict[bytes, bytes] = {}
        self._lock = threading.Lock()
        self._guests: set[socket.socket] = set()
        self._closed = False
        threading.Thread(target=self._listen, name="store", daemon=True).start()

    def perform(self, operations: Sequence[Operation]) -> Answers:
        """Perform operations atomically."""
        with self._lock:
            return [self._perform(*operation) for operation in operations]

    def close(self) -> None:
        """Close the store and all of its connections."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the listening thread
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
                time.sleep(PAUSE_S)  # e.g. too many open files; existing connections are not affected
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
    """Split a frame into operations.

    Raises:
        ValueError: If it contains something else.
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
    """A thread-safe connection to a run's store.

    Args:
        address: Host of the store.
        port: Port of the store.
        secret: Secret of the run.
        name: Name of the run that other processes may see.
        timeout: Timeout of an answer, seconds.

    Raises:
        CommError: If nothing answers there, or another run's store does.
    """

    def __init__(self, address: str, port: int, secret: str, name: str, timeout: float):
        self.words = Words(self.ask)
        self._lock = threading.Lock()
        self._connection = _reached(address, port, secret, name, timeout)

    def ask(self, operations: Sequence[Operation]) -> Answers:
        """Have the store perform operations atomically.

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
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _reached(address: str, port: int, secret: str, name: str, timeout: float) -> socket.socket:
    """Return an authenticated connection, retrying until the timeout."""
    end, strange = time.monotonic() + timeout, float("inf")  # deadline; time of the first answer by another run
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
    """Return a listening socket for a store, at one address only; at any free port if ``port`` is 0.

    Raises:
        CommError: If the port is taken, naming by which process, or the address is not of this host.
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
    """Resolve an address, preferring IPv4."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
    family, *_, place = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, (str(place[0]), int(place[1]))


def process_name(name: str) -> str:
    """Return the description of a process for others: its run's name, its id and its host."""
    return f"{name}, process {os.getpid()} on {platform.node()}"
