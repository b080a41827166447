"""What stands for inputs that are no plain data: digests of their contents, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.core.method.inputs import Extras

DIGITS = 12


def given_digests(extras: Extras, image: Image | None) -> dict[str, str]:
    """A digest of every input that a recipe cannot carry, by name.

    Args:
        extras: What the caller brought.
        image: The picture to start from, if it is a file's.
    """
    found = {name: content_digest(getattr(extras, name)) for name in extras.given()}
    return found if image is None else {**found, "image": content_digest(image)}


def content_digest(value: object) -> str:
    """Hexadecimal digits that stand for numbers, text, tensors, arrays and pictures, alone or in lists and tables."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:DIGITS]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        value = [part for item in sorted(value.items()) for part in item]
    if isinstance(value, (list, tuple)):
        digest.update(f"list {len(value)};".encode())
        for item in value:
            _feed(digest, item)
    elif hasattr(value, "tobytes"):  # pictures and arrays
        size = getattr(value, "shape", None) or (value.mode, value.size)
        digest.update(f"{getattr(value, 'dtype', '')} {size};".encode() + value.tobytes())
    elif hasattr(value, "untyped_storage"):
        import torch

        digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{value!r};".encode())
