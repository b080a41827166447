"""Reading of text files from untrusted sources: bounded in size, as UTF-8."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.errors import ConfigError, VitrailError, shortened

LARGEST = 2**20  # bytes of a file written by hand
LARGEST_LIST = 2**24  # bytes of a file with a line per picture
LARGEST_RECORD = 2**26  # bytes of a file written by a program
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, largest: int = LARGEST, kind: type[VitrailError] = ConfigError, where: str = "") -> str:
    """Read the text of a file, with Unix line ends and without a byte order mark.

    Args:
        path: Path of a regular file; devices and pipes are refused, since reading them may never end.
        largest: Largest allowed size, bytes.
        kind: Class of the error.
        where: Beginning of the error.

    Raises:
        VitrailError: Of class ``kind``, if the file cannot be read, is too large or is not text.
    """
    shown = where + shortened(str(path))
    try:
        file = expanded(path)
        refuse_irregular(file)
        with file.open("rb") as content:
            data = content.read(largest + 1)
    except ConfigError as error:
        raise kind(f"{where}{error}") from error
    except OSError as error:
        raise kind(f"{shown}: cannot be read: {error.strerror}") from error
    if len(data) > largest:
        raise kind(f"{shown}: is larger than {_size(largest)}, the most that such a file may have")
    if data[:2] in UTF16:
        raise kind(f"{shown}: is UTF-16 text; save it as UTF-8, e.g. in the editor's dialogue")
    if b"\0" in data:
        raise kind(f"{shown}: is no text; byte {data.index(0)} is NUL")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise kind(f"{shown}: is not UTF-8 text; byte {error.start} is {error.object[error.start]:#x}") from error


def read_json(path: Path, largest: int = LARGEST, kind: type[VitrailError] = ConfigError, where: str = "") -> Any:
    """Read a JSON file; see ``read_text``.

    Args:
        path: Path of a regular file.
        largest: Largest allowed size, bytes.
        kind: Class of the error.
        where: Beginning of the error.

    Raises:
        VitrailError: Of class ``kind``, if the file cannot be read or is not JSON.
    """
    text = read_text(path, largest, kind, where)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where}{shortened(str(path))}: is no JSON: {shortened(str(error))}") from error


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count} bytes"
