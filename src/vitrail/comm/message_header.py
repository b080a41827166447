"""Headers: the operation that a rank believes it takes part in, in a fixed number of bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 256  # bytes of a header on the wire
DIGEST = 16


def pack_header(run_id: str, seq: int, call: str, details: str = "") -> bytes:
    """Return a header: a digest of its whole text, then as much of the text as fits.

    Args:
        run_id: Id of the run; messages of another run never match.
        seq: Position in the ordering domain.
        call: The operation with its arguments, e.g. ``broadcast(float32 2x3, src=0)``.
        details: Further text that must agree, of any length.
    """
    text = f"{call}, operation {seq} of run {run_id}{': ' if details else ''}{details}".encode()
    digest = hashlib.blake2b(text, digest_size=DIGEST).digest()
    return (digest + text)[:SIZE].ljust(SIZE, b"\0")


def read_header(header: bytes) -> str:
    """Return the text of a header, truncated if it was long."""
    return header[DIGEST:].rstrip(b"\0").decode(errors="replace")


def odd_one_out(headers: Mapping[int, bytes], rank: int) -> tuple[int, bytes] | None:
    """Return the rank that disagrees, by majority, and a header that differs from this rank's.

    Args:
        headers: Headers by rank, as far as they have arrived, this rank's included.
        rank: This rank; in a tie the other one is blamed.

    Returns:
        None if all are equal.
    """
    others = [other for other in sorted(headers) if headers[other] != headers[rank]]
    if not others:
        return None
    votes = Counter(headers.values())
    odd = min(others, key=lambda other: votes[headers[other]])
    return (rank if votes[headers[rank]] < votes[headers[odd]] else odd), headers[odd]


def describe(tensor: Tensor) -> str:
    """Return dtype and shape of a tensor, e.g. ``float32 2x3``."""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}"
