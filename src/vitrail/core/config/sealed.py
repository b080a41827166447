"""Sealed files: tensors and a text under a digest of both, so that damaged files are refused.

They are safetensors files, so nothing in them is code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.core.config.atomic import replacing
from vitrail.core.config.paths import refuse_irregular
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "1"  # increased when older files can no longer be read
ATTEMPTS = 20  # readings of a file that is replaced in every one
TEXT, DIGEST, VERSION = "vitrail", "vitrail.digest", "vitrail.format"


def save_sealed(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write tensors and a text atomically.

    Args:
        path: Path of the file.
        tensors: Tensors by name, on any device.
        text: Any text.

    Raises:
        OutputError: If it cannot be written.
    """
    from safetensors.torch import save_file

    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {TEXT: text, DIGEST: digest(content, text), VERSION: FORMAT}
    with replacing(path) as part:
        save_file(content, part, metadata=metadata)


def load_sealed(path: Path, what: str) -> tuple[dict[str, Tensor], str]:
    """Read a file that ``save_sealed`` wrote.

    Args:
        path: Path of the file.
        what: What the file should be, for the error, e.g. "a checkpoint of a run".

    Raises:
        ConfigError: If the file is not sealed, of another format or damaged.
    """
    from safetensors import SafetensorError

    try:
        refuse_irregular(path)
        tensors, metadata = read_tensors(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}: is not {what}, or is damaged: {error}") from error
    if not {TEXT, DIGEST} <= metadata.keys():
        raise ConfigError(f"{path}: is not {what}, or is damaged: it has no digest")
    if metadata.get(VERSION) != FORMAT:
        raise ConfigError(f"{path}: is {what} in format {metadata.get(VERSION)!r}, this version reads {FORMAT!r}")
    if digest(tensors, metadata[TEXT]) != metadata[DIGEST]:
        raise ConfigError(f"{path}: is damaged: its content is not what was written; use another copy, or begin again")
    return tensors, metadata[TEXT]


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata of one version of a file that another process may replace meanwhile.

    The library opens a file by its name for the header and again for the tensors, so these may be of two versions.

    Raises:
        SafetensorError: If it is no safetensors file; OSError if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    for attempt in range(1, ATTEMPTS + 1):
        before = _version(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, RuntimeError):  # torch maps the file by its name, too
            if attempt == ATTEMPTS or _version(path) == before:
                raise
            continue
        if _version(path) == before:
            break
    return tensors, metadata


def _version(path: Path) -> tuple[int, int, int]:
    """What differs between a file and the one that replaced it."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a SHA-256 digest of names, types, shapes and bits of CPU tensors, and of a text."""
    import torch

    found = hashlib.sha256(f"{FORMAT}\n{len(text)}\n{text}".encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\n{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
