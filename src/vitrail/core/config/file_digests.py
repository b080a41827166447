"""Digests of the contents of files that a strategy, a metric or a reference reads."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

CHUNK = 2**20  # bytes read at once

Stamp = tuple[Path, int, int | None]  # size and time of the last change; no time for a file that is not there


def digest_of_files(files: Iterable[Path]) -> str:
    """Return a SHA-256 digest of the contents of files, in their order, whatever their names.

    Missing files count as empty ones, since their reader reports them better. A file is read again only if its size or
    modification time changed.
    """
    return _of_stamps(tuple(_stamp(file) for file in files))


def shows_nothing(digest: str) -> bool:
    """Whether a digest is that of one file that is missing or empty."""
    return digest == _of_stamps(((Path(), 0, None),))


def _stamp(file: Path) -> Stamp:
    if not file.is_file():
        return file, 0, None
    found = file.stat()
    return file, found.st_size, found.st_mtime_ns


@functools.cache
def _of_stamps(stamps: tuple[Stamp, ...]) -> str:
    return hashlib.sha256("\n".join(_of_file(file, changed) for file, _, changed in stamps).encode()).hexdigest()


def _of_file(file: Path, changed: int | None) -> str:
    digest = hashlib.sha256()
    if changed is not None:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
