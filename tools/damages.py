"""Ways in which a file's bytes go wrong, at places drawn by chance."""

import re
from collections.abc import Callable
from random import Random

HEAD = 512  # bytes, where formats say what follows; half of all places lie there
LONGEST = 64  # bytes that go wrong at once
Damage = Callable[[bytes, bytes, Random], bytes]


def place(data: bytes, chance: Random) -> int:
    """Of a byte."""
    return chance.randrange(max(1, min(len(data), HEAD) if chance.random() < 0.5 else len(data)))


def stretch(data: bytes, chance: Random) -> tuple[int, int]:
    """Where some bytes begin and end."""
    begin = place(data, chance)
    return begin, min(len(data), begin + chance.randint(1, LONGEST))


def flip(data: bytes, _: bytes, chance: Random) -> bytes:
    """One to three bits."""
    changed = bytearray(data)
    for _each in range(chance.randint(1, 3)):
        changed[place(data, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, _: bytes, chance: Random) -> bytes:
    """The end is missing."""
    return data[: place(data, chance)]


def replace(data: bytes, _: bytes, chance: Random) -> bytes:
    """Noise in place of some bytes."""
    begin, end = stretch(data, chance)
    return data[:begin] + chance.randbytes(end - begin) + data[end:]


def blank(data: bytes, _: bytes, chance: Random) -> bytes:
    """Zeros in place of some bytes, as of a block that was never written."""
    begin, end = stretch(data, chance)
    return data[:begin] + bytes(end - begin) + data[end:]


def insert(data: bytes, _: bytes, chance: Random) -> bytes:
    """Noise between two bytes."""
    begin = place(data, chance)
    return data[:begin] + chance.randbytes(chance.randint(1, LONGEST)) + data[begin:]


def drop(data: bytes, _: bytes, chance: Random) -> bytes:
    """Some bytes are missing."""
    begin, end = stretch(data, chance)
    return data[:begin] + data[end:]


def swap(data: bytes, other: bytes, chance: Random) -> bytes:
    """The head of another file before the rest of this one."""
    begin = chance.choice((8, 16, 64, HEAD))
    return other[:begin] + data[begin:]


def grow(data: bytes, _: bytes, chance: Random) -> bytes:
    """A number that is larger by far: digits, or the largest of two, four or eight bytes."""
    digits = list(re.finditer(rb"\d+", data[: 64 * HEAD]))
    if digits and chance.random() < 0.7:
        end = chance.choice(digits).end()
        return data[:end] + b"9" * chance.choice((1, 3, 6, 20, 5000)) + data[end:]
    begin, size = place(data, chance), chance.choice((2, 4, 8))
    return data[:begin] + (b"\xff" * (size - 1) + b"\x7f") + data[begin + size :]


def nest(data: bytes, _: bytes, chance: Random) -> bytes:
    """Brackets without end, which a reader that follows them runs out of stack on."""
    begin = place(data, chance)
    return data[:begin] + b"[" * 100_000 + data[begin:]


DAMAGES: tuple[Damage, ...] = (flip, flip, cut, replace, blank, insert, drop, swap, grow, grow, nest)
