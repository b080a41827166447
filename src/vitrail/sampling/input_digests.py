"""Digests of the contents of inputs that are not plain data, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from vitrail.core.method.inputs import Extras

DIGITS = 12


def given_digests(extras: Extras, image: Image | None) -> dict[str, str]:
    """Return a digest of every input that a recipe cannot store, by name.

    Args:
        extras: Caller-supplied inputs.
        image: The picture to start from, if it came from a file.
    """
    found = {name: content_digest(getattr(extras, name)) for name in extras.given()}
    return found if image is None else {**found, "image": content_digest(image)}


def content_digest(value: object) -> str:
    """Return a digest, in hexadecimal, of numbers, text, tensors, arrays and pictures, also in lists and tables."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:DIGITS]


def _feed(digest: Any, value: Any) -> None:
    import numpy

    if isinstance(value, numpy.generic):
        value = value.item()
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
