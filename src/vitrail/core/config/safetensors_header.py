"""Headers of ``.safetensors`` files: names and shapes of tensors, read without weights and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from vitrail.core.config.paths import refuse_irregular
from vitrail.errors import ModelError

LONGEST = 100_000_000  # bytes of a header, the limit of the safetensors library
OTHERS = (  # (first bytes, kind of file, remedy)
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
        path: Path of the file.
        shapes: Shapes by tensor name.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def has(self, *beginnings: str) -> bool:
        """Whether a tensor name starts with one of the prefixes."""
        return any(name.startswith(beginnings) for name in self.shapes)

    def holds(self, *words: str) -> bool:
        """Whether a tensor name contains one of the words."""
        return any(word in name for name in self.shapes for word in words)

    def values(self, beginning: str) -> int:
        """Return the number of values in the tensors whose names start with a prefix."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(beginning))


def read_header(path: Path) -> Header:
    """Read the header of a file: eight bytes for its length, then JSON.

    Raises:
        ModelError: If the file is missing, of another format or truncated.
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
    if begin[8:9] == b"{":  # a safetensors header; the eight bytes before are its length
        return
    for start, what, remedy in OTHERS:
        if begin.lstrip().startswith(start):
            raise ModelError(f"{path} is {what}; {remedy}")
