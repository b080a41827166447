"""Random damages of a file's bytes.

Every damage takes the bytes of the file, those of another file, and a random generator, and returns damaged bytes.
"""

import re
from collections.abc import Callable
from random import Random

HEAD = 512  # bytes of a file's head, where half of all damages are
LONGEST = 64  # maximum number of damaged bytes in a row
Damage = Callable[[bytes, bytes, Random], bytes]


def place(data: bytes, chance: Random) -> int:
    """Draw the index of a byte."""
    return chance.randrange(max(1, min(len(data), HEAD) if chance.random() < 0.5 else len(data)))


def stretch(data: bytes, chance: Random) -> tuple[int, int]:
    """Draw begin and end of a range of bytes."""
    begin = place(data, chance)
    return begin, min(len(data), begin + chance.randint(1, LONGEST))


def flip(data: bytes, _: bytes, chance: Random) -> bytes:
    """Flip one to three bits."""
    changed = bytearray(data)
    for _each in range(chance.randint(1, 3)):
        changed[place(data, chance)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, _: bytes, chance: Random) -> bytes:
    """Cut off the end."""
    return data[: place(data, chance)]


def replace(data: bytes, _: bytes, chance: Random) -> bytes:
    """Replace a range of bytes by noise."""
    begin, end = stretch(data, chance)
    return data[:begin] + chance.randbytes(end - begin) + data[end:]


def blank(data: bytes, _: bytes, chance: Random) -> bytes:
    """Replace a range of bytes by zeros, like a block that was never written."""
    begin, end = stretch(data, chance)
    return data[:begin] + bytes(end - begin) + data[end:]


def insert(data: bytes, _: bytes, chance: Random) -> bytes:
    """Insert noise."""
    begin = place(data, chance)
    return data[:begin] + chance.randbytes(chance.randint(1, LONGEST)) + data[begin:]


def drop(data: bytes, _: bytes, chance: Random) -> bytes:
    """Remove a range of bytes."""
    begin, end = stretch(data, chance)
    return data[:begin] + data[end:]


def swap(data: bytes, other: bytes, chance: Random) -> bytes:
    """Replace the head by that of another file."""
    begin = chance.choice((8, 16, 64, HEAD))
    return other[:begin] + data[begin:]


def grow(data: bytes, _: bytes, chance: Random) -> bytes:
    """Increase a number: append digits to one in text, or set two, four or eight bytes to the largest integer."""
    digits = list(re.finditer(rb"\d+", data[: 64 * HEAD]))
    if digits and chance.random() < 0.7:
        end = chance.choice(digits).end()
        return data[:end] + b"9" * chance.choice((1, 3, 6, 20, 5000)) + data[end:]
    begin, size = place(data, chance), chance.choice((2, 4, 8))
    return data[:begin] + (b"\xff" * (size - 1) + b"\x7f") + data[begin + size :]


def nest(data: bytes, _: bytes, chance: Random) -> bytes:
    """Insert many nested brackets, which overflow the stack of a recursive parser."""
    begin = place(data, chance)
    return data[:begin] + b"[" * 100_000 + data[begin:]


DAMAGES: tuple[Damage, ...] = (flip, flip, cut, replace, blank, insert, drop, swap, grow, grow, nest)
