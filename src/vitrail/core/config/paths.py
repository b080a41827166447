"""Paths as users write them: ``~`` is expanded, and impossible paths are refused."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from vitrail.errors import ConfigError, shortened

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, on common file systems
MODEL_FILE = ".safetensors"


def expanded(path: str | Path) -> Path:
    """Expand ``~`` in a path to the home folder.

    Raises:
        ConfigError: If no file can have the path: it contains NUL, a part is too long, or the user is unknown.
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
    """As ``expanded``, for an option that may be left out."""
    return None if path is None else expanded(path)


def refuse_irregular(path: Path) -> None:
    """Refuse what is not a regular file, since reading a device or a pipe may never begin or end.

    Raises:
        OSError: Also if it does not exist.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def beside(folder: Path, name: str) -> str:
    """Return a path read from a file, resolved relative to that file's folder."""
    return str(folder / expanded(name))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass") if os.name == "nt" else os.fsencode(text)
