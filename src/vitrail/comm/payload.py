"""Conversion of tensors to bytes and back: any dtype and shape, bit for bit, with an optional checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vitrail.errors import ProtocolError

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = 4  # bytes of the CRC-32 after a part


def size_of(tensors: Iterable[Tensor], checksums: bool) -> int:
    """Return the size in bytes of a part that holds these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + CHECKSUM * checksums


def to_bytes(tensors: Sequence[Tensor], checksums: bool) -> Tensor:
    """Return a private copy of the tensors' bytes, concatenated, UInt8[Tensor, "nbytes"]."""
    import torch

    flat = [_dense(tensor).view(torch.uint8) for tensor in tensors]
    if checksums:
        crc = 0
        for piece in flat:
            crc = zlib.crc32(piece.numpy().data, crc)
        flat.append(torch.frombuffer(bytearray(crc.to_bytes(CHECKSUM, "little")), dtype=torch.uint8))
    return torch.cat([torch.empty(0, dtype=torch.uint8, device="cpu"), *flat])


def _dense(tensor: Tensor) -> Tensor:
    """Flatten a tensor on the CPU to stride 1; ``contiguous`` alone may keep other strides of one element or none."""
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return values if values.numel() > 1 else values.as_strided(values.shape, (1,))


def from_bytes(part: Tensor, tensors: Sequence[Tensor], checksums: bool, where: str) -> None:
    """Write a part into tensors of the shapes that it was made from.

    Args:
        part: UInt8[Tensor, "nbytes"].
        tensors: Overwritten, in the order of ``to_bytes``.
        checksums: Whether the part ends with a checksum.
        where: Beginning of the error.

    Raises:
        ProtocolError: If the checksum does not match.
    """
    import torch

    if checksums:
        part, crc = part[:-CHECKSUM], int.from_bytes(bytes(part[-CHECKSUM:].tolist()), "little")
        if zlib.crc32(part.contiguous().numpy().data) != crc:
            raise ProtocolError(f"{where}: the bytes that arrived are not those that were sent (checksum)")
    begin = 0
    with torch.inference_mode():  # the only mode that may write to tensors of both modes
        for tensor in tensors:
            end = begin + tensor.numel() * tensor.element_size()
            piece = part[begin:end].clone()  # aligned for every type
            tensor.copy_(piece.view(tensor.dtype).view(tensor.shape) if tensor.numel() else torch.empty_like(tensor))
            begin = end
