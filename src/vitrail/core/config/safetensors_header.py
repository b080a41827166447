"""The header of a ``.safetensors`` file: names and shapes of its tensors, read without weights and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from vitrail.core.config.paths import refuse_irregular
from vitrail.errors import ModelError

LONGEST = 100_000_000  # bytes of a header, as in the safetensors library
OTHERS = (  # (how a file begins, what it is, what to do)
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull` in its folder"),
    (b"<", "a web page, not a model", "the download went to a page; get the file itself"),
    (b"GGUF", "a GGUF file", "take the .safetensors file of the model"),
    (b"PK\x03\x04", "a pickled checkpoint, whatever its name", "convert it to safetensors"),
    (b"\x80\x02", "a pickled checkpoint, whatever its name", "convert it to safetensors"),
)


@frozen
class Header:
    """Names and shapes of a file's tensors.

    Attributes:
        path: The file.
        shapes: Shape by name.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def has(self, *beginnings: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(beginnings) for name in self.shapes)

    def holds(self, *words: str) -> bool:
        """Whether a name holds one of the words."""
        return any(word in name for name in self.shapes for word in words)

    def values(self, beginning: str) -> int:
        """How many values the tensors have whose names begin so."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(beginning))


def read_header(path: Path) -> Header:
    """Eight bytes that give the length, then JSON.

    Raises:
        ModelError: If the file is missing, something else, or cut short.
    """
    try:
        refuse_irregular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(64)
            length = int.from_bytes(begin[:8], "little")
            _refuse_others(path, begin)
            file.seek(8)
            text = file.read(length) if length <= min(size - 8, LONGEST) else b""
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    try:
        table = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        shapes = {name: tuple(int(size) for size in entry["shape"]) for name, entry in table.items()}
        needed = 8 + length + max((entry["data_offsets"][1] for entry in table.values()), default=0)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is broken or no safetensors file ({size} bytes, no header); get it again") from error
    if size != needed:
        raise ModelError(f"{path} is broken: it has {size} bytes, and its header tells of {needed}; get it again")
    return Header(path, shapes)


def _refuse_others(path: Path, begin: bytes) -> None:
    if begin[8:9] == b"{":  # the first bytes are a length, and may be anything
        return
    for start, what, remedy in OTHERS:
        if begin.lstrip().startswith(start):
            raise ModelError(f"{path} is {what}; {remedy}")
