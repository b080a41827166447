"""The one way in which text is read from files that anybody may have written: bounded, and as UTF-8."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from vitrail.core.config.paths import expanded, refuse_irregular
from vitrail.errors import ConfigError, VitrailError, shortened

LARGEST = 2**20  # bytes of a file that people write
LARGEST_LIST = 2**24  # of a file with a line for each picture
LARGEST_RECORD = 2**26  # of what programs write for programs
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, largest: int = LARGEST, kind: type[VitrailError] = ConfigError, where: str = "") -> str:
    """The text of a file, with the line ends of Unix and without a byte order mark.

    Args:
        path: Of a regular file: what is a device or a pipe may never end, so it is not begun with.
        largest: Bytes that it may have.
        kind: Of the error.
        where: How the error begins.

    Raises:
        VitrailError: Of the wanted kind, if it cannot be read, is too large or is no text.
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
    """What a file of JSON holds; see ``read_text``.

    Raises:
        VitrailError: Of the wanted kind, if it cannot be read or is no JSON.
    """
    text = read_text(path, largest, kind, where)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{where}{shortened(str(path))}: is no JSON: {shortened(str(error))}") from error


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count} bytes"
