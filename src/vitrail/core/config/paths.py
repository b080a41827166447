"""Paths as people write them: with ``~`` for the home folder, and of a kind that a file system can have."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vitrail.errors import ConfigError, shortened

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on the file systems in use
MODEL_FILE = ".safetensors"


def expanded(path: str | Path) -> Path:
    """A path with the home folder in the place of ``~``.

    Raises:
        ConfigError: If no file can have it: it holds NUL, a part of it is too long, or it is of an unknown user's home.
    """
    text = str(path)
    if "\0" in text:
        raise ConfigError(f"{shortened(text, 80)!r}: a path has no NUL character in it")
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{shortened(text, 80)!r}: this machine knows no such user; write the path in full"
        ) from error
    longest = max((len(_bytes(part)) for part in found.parts), default=0)
    if longest > LONGEST_NAME or len(_bytes(str(found))) > LONGEST_PATH:
        raise ConfigError(
            f"{shortened(text, 80)!r}: no file has such a path: a name in it may have {LONGEST_NAME} bytes and all of "
            f"it {LONGEST_PATH}, here they have {longest} and {len(_bytes(str(found)))}"
        )
    return found


def expanded_or_none(path: str | Path | None) -> Path | None:
    """The same of an option that may be left out."""
    return None if path is None else expanded(path)


def refuse_irregular(path: Path) -> None:
    """Refuse what is no regular file: a device or a pipe may never end, or never begin.

    Raises:
        OSError: Also if it is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def beside(folder: Path, name: str) -> str:
    """A path that a file names: what is relative is meant from the folder of that file."""
    return str(folder / expanded(name))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass") if os.name == "nt" else os.fsencode(text)
