"""Files that appear, or are replaced, only when they are complete.

Whatever writes a file writes it through here: under a name of its own in the same folder that nobody can foresee,
created exclusively, synchronised with the disk, and moved into place at the end. However the writing ends, that
first file is gone; what stood under the name before is whole until then. A symlink is replaced, never followed.
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
SUFFIX = ".part"  # before the file's own, by which libraries choose a format
OWNER = "VITRAIL_PARTS"  # variable with what the names of first files begin with, so that a launcher can find them
LONGEST_SUFFIX = 40  # bytes: a longer one chooses no format

_in_work: set[Path] = set()  # first files of this process, for whoever ends it
_written: set[Path] = set()


def in_work() -> bool:
    """Whether this process is writing a file."""
    return bool(_in_work)


def count_written() -> int:
    """How many files and folders this process has completed."""
    return len(_written)


def discard_of(owner: str, folders: Iterable[Path]) -> None:
    """Remove what processes that have died had begun to write.

    Args:
        owner: Of these processes' variable ``OWNER``.
        folders: Where they may have written.
    """
    for part in (part for folder in set(folders) for part in folder.glob(f"{PREFIX}{owner}-*")):
        _remove(part)


def discard() -> None:
    """Remove what this process has begun to write, from any thread, since it is about to end."""
    for part in list(_in_work):
        _remove(part)


def _remove(part: Path) -> None:
    with suppress(OSError):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Write a file whole, or not at all.

    Args:
        path: Where it will be.
        overwrite: Whether a file of this name may be replaced, also one that appears during the writing.

    Yields:
        An empty file in the same folder with the same suffix, to be written to.

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
    """Write a folder whole, or not at all; see ``replacing``.

    Yields:
        An empty folder beside it.

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
            shutil.rmtree(path, ignore_errors=True)
            part.replace(path)
            _written.add(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _in_work.discard(part)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text with the line ends that it has; see ``replacing``.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def _fresh(path: Path) -> Path:
    """An empty file beside another, with the permissions that the process gives new files."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST_SUFFIX else ""
    part = path.with_name(f"{_name()}{SUFFIX}{suffix}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return part


def _name() -> str:
    """What nobody can foresee."""
    owner = os.environ.get(OWNER, "")
    return f"{PREFIX}{owner}{'-' * bool(owner)}{secrets.token_hex(8)}"


def _synchronise(path: Path) -> None:
    """Wait until the disk has a file's content, so that a crash of the machine cannot leave an empty one in place."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _move_new(part: Path, path: Path) -> None:
    """Give a file its name if there is none of it; a hard link does so in one step, where the file system has them."""
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
    """Turn what the system or a library says of a failed write into one error.

    Raises:
        OutputError: In place of the system's.
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
