"""Pickles that hold tables of tensors: looked through before they are loaded, for what could exhaust memory.

The weights-only loader of torch runs no code of a file, but calls what a few bytes ask for: ``bytearray(2**37)``, or a
tensor of any shape. A table of tensors needs neither, so here no other names pass than those that ``torch.save`` writes
for one. Two formats are read, each as torch finds it: an archive of records, and five pickles in a row.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import zipfile
from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pathlib import Path

ARCHIVE = b"PK\x03\x04"  # how an archive begins
PICKLES_IN_A_ROW = 5  # of the older format: magic number, version, facts of the system, the table, keys of storages
STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {kind}Storage" for kind in STORAGES),
    }
)


def check_pickle(path: Path) -> None:
    """Refuse a file of ``torch.save`` that names more than a table of tensors needs, or unpacks to more than it is.

    Raises:
        pickle.UnpicklingError: If it names anything else.
        Exception: Of any type if it is broken.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[: len(ARCHIVE)] == ARCHIVE:
            _check_archive(path, len(content))
        else:
            for _ in range(PICKLES_IN_A_ROW):
                _check_names(cast("IO[bytes]", content))  # which has the methods that are asked for


def _check_archive(path: Path, size: int) -> None:
    """Refuse records that are larger than the file, with the reader that loads them, so that it sees no others."""
    import torch

    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its parts are compressed, which torch does not do, so they may be of any size")
    reader = torch._C.PyTorchFileReader(str(path))
    names = reader.get_all_records()
    if sum(map(reader.get_record_size, names)) > size:
        raise ValueError("its parts are larger than the file")
    storages = [name[len("data/") :] for name in names if name.lower().startswith("data/")]
    if not all(name.isascii() and name.isdecimal() for name in storages):  # letters of either case name the same record
        raise ValueError("its storages are not numbered")
    _check_names(io.BytesIO(reader.get_record("data.pkl")))


def _check_names(content: IO[bytes]) -> None:
    """Read one pickle to its end and refuse names that are not in ``GLOBALS``."""
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL" and argument not in GLOBALS:
            raise pickle.UnpicklingError(f"GLOBAL {str(argument).replace(' ', '.')}")
