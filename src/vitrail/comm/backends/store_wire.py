"""How a run's store and those who use it speak: frames of byte fields, after each has proved to know the run's secret.

The secret itself is never sent. Whoever does not know it learns a name for people, and nothing else.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from collections.abc import Sequence

HELLO = b"vitrail store 1"
LARGEST = 1 << 24  # bytes of a frame
LARGEST_GREETING = 1 << 10
GREETING_S = 5.0  # for the other's part of a greeting
LONGEST_NAME = 120
_COUNT = struct.Struct("!I")


class ForeignRunError(ConnectionError):
    """The other side belongs to another run; ``args[0]`` is its name, or what it seems to be."""


class FrameError(ConnectionError):
    """The other side speaks otherwise."""


def send(connection: socket.socket, fields: Sequence[bytes]) -> None:
    """Send a frame."""
    body = b"".join(_COUNT.pack(len(each)) + each for each in fields)
    connection.sendall(_COUNT.pack(len(body)) + body)


def receive(connection: socket.socket, largest: int = LARGEST) -> list[bytes]:
    """The fields of the next frame.

    Raises:
        FrameError: If the other side speaks otherwise.
        ConnectionError: If it has gone.
    """
    (size,) = _COUNT.unpack(_exactly(connection, _COUNT.size))
    if size > largest:
        raise FrameError(f"a frame of {size} bytes came, at most {largest} were expected")
    body, fields, begin = _exactly(connection, size), [], 0
    while begin < size:
        end = begin + _COUNT.size
        if end > size:
            raise FrameError("a frame ended within a field")
        (length,) = _COUNT.unpack_from(body, begin)
        begin, end = end, end + length
        if end > size:
            raise FrameError("a frame ended within a field")
        fields.append(body[begin:end])
        begin = end
    return fields


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = connection.recv(min(left, 1 << 16))
        if not part:
            raise ConnectionError("the other side has hung up")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def admit(connection: socket.socket, secret: str, name: str) -> None:
    """The keeper's side of a greeting.

    Args:
        connection: To somebody.
        secret: Of the run.
        name: What strangers may know of it.

    Raises:
        ForeignRunError: If the other does not know the secret; it is told so.
        OSError: If it says nothing or hangs up.
    """
    connection.settimeout(GREETING_S)
    ours = secrets.token_bytes(32)
    send(connection, [HELLO, ours, name.encode()])
    answer = receive(connection, LARGEST_GREETING)
    if len(answer) != 3 or not hmac.compare_digest(answer[1], _proof(secret, b"guest", ours, answer[0])):
        send(connection, [b"no"])
        raise ForeignRunError(shown(answer[2]) if len(answer) == 3 else "something that is no rank")
    send(connection, [b"yes", _proof(secret, b"keeper", answer[0], ours)])
    connection.settimeout(None)


def enter(connection: socket.socket, secret: str, name: str, patience: float = GREETING_S) -> None:
    """The guest's side of a greeting.

    Args:
        connection: To a store.
        secret: Of the run.
        name: What the keeper may know of this process if it belongs to another run.
        patience: Seconds for each of the keeper's answers.

    Raises:
        ForeignRunError: If a store of another run, or something else, listens there.
        OSError: If it hangs up or says nothing.
    """
    connection.settimeout(min(GREETING_S, patience))
    theirs, keeper = _hello(connection)
    ours = secrets.token_bytes(32)
    send(connection, [ours, _proof(secret, b"guest", theirs, ours), name.encode()])
    answer = receive(connection, LARGEST_GREETING)
    if len(answer) != 2 or not hmac.compare_digest(answer[1], _proof(secret, b"keeper", ours, theirs)):
        raise ForeignRunError(keeper)
    connection.settimeout(None)


def keeper_of(address: str, port: int) -> str:
    """Who keeps a port, as far as it tells strangers."""
    try:
        with socket.create_connection((address, port), timeout=GREETING_S) as connection:
            return _hello(connection)[1]
    except ForeignRunError as error:
        return str(error)
    except OSError:
        return "something that does not answer"


def _hello(connection: socket.socket) -> tuple[bytes, str]:
    """What a keeper says first: a number to be answered, and a name."""
    try:
        hello = receive(connection, LARGEST_GREETING)
    except FrameError as error:
        raise ForeignRunError("something that is no run's store") from error
    if len(hello) != 3 or hello[0] != HELLO:
        raise ForeignRunError("something that is no run's store")
    return hello[1], shown(hello[2])


def shown(name: bytes) -> str:
    """A stranger's name, fit for a terminal."""
    text = name.decode(errors="replace")[:LONGEST_NAME]
    return "".join(each if each.isprintable() else "?" for each in text)


def _proof(secret: str, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"\0".join((role, first, second)), "sha256")
