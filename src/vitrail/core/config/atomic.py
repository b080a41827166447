"""Atomic writes: files appear, or are replaced, only when they are complete.

All files are written through here: under an unpredictable temporary name in the same folder, created exclusively,
synchronised with the disk and moved into place at the end. The temporary file is removed however the writing ends, and
the previous file or folder stays intact until then. A symlink is replaced, never followed; a device or a pipe is
neither.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.errors import OutputError

PREFIX = ".vitrail-"
SUFFIX = ".part"  # precedes the file's own suffix, by which libraries choose a format
OWNER = "VITRAIL_PARTS"  # environment variable with a prefix of temporary names, so that a launcher can find them
LONGEST_SUFFIX = 40  # bytes; a longer one is no file format

_in_work: set[Path] = set()  # temporary files of this process, for its clean-up
_written: set[Path] = set()


def in_work() -> bool:
    """Whether this process is writing a file."""
    return bool(_in_work)


def count_written() -> int:
    """Return how many files and folders this process has completed."""
    return len(_written)


def discard_of(owner: str, folders: Iterable[Path]) -> None:
    """Remove the temporary files of processes that have died.

    Args:
        owner: Value of the processes' environment variable ``OWNER``.
        folders: Folders in which they may have written.
    """
    for part in (part for folder in set(folders) for part in folder.glob(f"{PREFIX}{owner}-*")):
        _remove(part)


def discard() -> None:
    """Remove the temporary files of all threads of this process, since it is about to end."""
    for part in list(_in_work):
        _remove(part)


def _remove(part: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Write a file atomically.

    Args:
        path: Final path.
        overwrite: Whether an existing file may be replaced, also one that appears during the writing.

    Yields:
        An empty file in the same folder with the same suffix, to write to.

    Raises:
        OutputError: If it cannot be written; names the file and the reason.
    """
    part: Path | None = None
    with write_errors(path):
        part = _fresh(path)
    _in_work.add(part)
    try:
        with write_errors(path):
            yield part
            _synchronise(part)
            if overwrite:
                part.replace(path)
            else:
                _move_new(part, path)
            _written.add(path)
    finally:
        part.unlink(missing_ok=True)
        _in_work.discard(part)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically; see ``replacing``. An existing folder is set aside, and removed after the move.

    Yields:
        An empty folder in the same parent folder.

    Raises:
        OutputError: If it cannot be written.
    """
    part = path.with_name(f"{_name()}{SUFFIX}")
    with write_errors(path):
        part.mkdir(parents=True)
    _in_work.add(part)
    try:
        with write_errors(path):
            yield part
            _exchange(part, path)
            _written.add(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _in_work.discard(part)


def _exchange(part: Path, path: Path) -> None:
    """Move a folder to a path; what was there is removed, or put back if the move fails."""
    aside = path.with_name(f"{_name()}{SUFFIX}") if os.path.lexists(path) else None
    if aside is not None:
        path.replace(aside)
    try:
        part.replace(path)
    except OSError:
        if aside is not None:
            aside.replace(path)
        raise
    if aside is not None:
        aside.unlink() if not aside.is_dir() or aside.is_symlink() else shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, without changing its line ends; see ``replacing``.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def _fresh(path: Path) -> Path:
    """Create an empty file in the same folder, with the process's default permissions.

    Raises:
        OSError: Also if the final path is a device, pipe or socket, which the move would remove.
    """
    if os.path.lexists(path) and not (path.is_symlink() or path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no regular file")
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    part = path.with_name(f"{_name()}{SUFFIX}{suffix}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


def _name() -> str:
    """Return an unpredictable file name."""
    owner = os.environ.get(OWNER, "")
    return f"{PREFIX}{owner}{'-' * bool(owner)}{secrets.token_hex(8)}"


def _synchronise(path: Path) -> None:
    """Flush a file to disk, so that a crash of the machine cannot leave an empty one in place."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _move_new(part: Path, path: Path) -> None:
    """Move a file to a name that must not exist; atomic by a hard link where the file system has them."""
    try:
        os.link(part, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        part.replace(path)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an exception of a failed write into one error.

    Raises:
        OutputError: In place of the system's or the library's.
    """
    from safetensors import SafetensorError

    try:
        yield
    except FileExistsError as error:
        raise OutputError(path, "it exists by now; another run may have written it") from error
    except (OSError, SafetensorError) as error:
        raise OutputError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else None
    return text or str(error).rpartition("I/O error: ")[2]
