"""Wire protocol of a run's store: frames of byte fields, after both sides have proved to know the run's secret.

The secret itself is never sent. A process that does not know it learns the run's name, and nothing else.
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
GREETING_S = 5.0  # timeout of the other side's part of the handshake
LONGEST_NAME = 120
_COUNT = struct.Struct("!I")


class ForeignRunError(ConnectionError):
    """The other side belongs to another run; ``args[0]`` is its name, or what it seems to be."""


class FrameError(ConnectionError):
    """The other side uses another protocol."""


def send(connection: socket.socket, fields: Sequence[bytes]) -> None:
    """Send a frame."""
    body = b"".join(_COUNT.pack(len(each)) + each for each in fields)
    connection.sendall(_COUNT.pack(len(body)) + body)


def receive(connection: socket.socket, largest: int = LARGEST) -> list[bytes]:
    """Return the fields of the next frame.

    Raises:
        FrameError: If the frame is malformed or larger than ``largest`` bytes.
        ConnectionError: If the connection was closed.
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
    """Do the server's side of the handshake.

    Args:
        connection: Connection to a client.
        secret: Secret of the run.
        name: Name of the run that any client may see.

    Raises:
        ForeignRunError: If the client does not know the secret; it is informed.
        OSError: If the client sends nothing or closes the connection.
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
    """Do the client's side of the handshake.

    Args:
        connection: Connection to a store.
        secret: Secret of the run.
        name: Description of this process for a store of another run.
        patience: Timeout of each answer, seconds.

    Raises:
        ForeignRunError: If a store of another run, or another program, listens there.
        OSError: If it closes the connection or sends nothing.
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
    """Return the name of the store that listens at a port, or what seems to be there."""
    try:
        with socket.create_connection((address, port), timeout=GREETING_S) as connection:
            return _hello(connection)[1]
    except ForeignRunError as error:
        return str(error)
    except OSError:
        return "something that does not answer"


def _hello(connection: socket.socket) -> tuple[bytes, str]:
    """Return the server's first message: a random challenge, and a name.

    Raises:
        ForeignRunError: If it is not a store.
    """
    try:
        hello = receive(connection, LARGEST_GREETING)
    except FrameError as error:
        raise ForeignRunError("something that is no run's store") from error
    if len(hello) != 3 or hello[0] != HELLO:
        raise ForeignRunError("something that is no run's store")
    return hello[1], shown(hello[2])


def shown(name: bytes) -> str:
    """Return another process's name, truncated and without control characters."""
    text = name.decode(errors="replace")[:LONGEST_NAME]
    return "".join(each if each.isprintable() else "?" for each in text)


def _proof(secret: str, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.digest(secret.encode(), b"\0".join((role, first, second)), "sha256")
