"""Payloads: test tensors of any dtype, shape, memory layout and bits."""

from __future__ import annotations

import random
from typing import Literal

import torch
from attrs import frozen
from hypothesis import strategies as st
from torch import Tensor

Layout = Literal["dense", "turned", "sparse"]
Bits = tuple[str, tuple[int, ...], bytes]

FLOATS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF << 52}
DTYPES = [
    torch.int32,
    *FLOATS,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
]  # Hypothesis shrinks to the first


@frozen
class Payload:
    """Tensors of one dtype, shape and layout, whose bits are determined by a key.

    Attributes:
        dtype: Their dtype.
        shape: Their shape.
        layout: Memory layout: "dense", "turned" (first two dimensions transposed) or "sparse" (last one of stride 2).
        is_nan: Whether every float is an infinity or a NaN, with distinct bits.
    """

    dtype: torch.dtype = torch.float32
    shape: tuple[int, ...] = (3,)
    layout: Layout = "dense"
    is_nan: bool = False

    def make(self, *key: object) -> Tensor:
        """Make the tensor of a key, with bits that are random but equal for equal keys."""
        count = 1
        for size in self.shape:
            count *= size
        data = bytearray(random.Random(repr(key)).randbytes(count * self.dtype.itemsize))
        if self.dtype == torch.bool:
            data = bytearray(byte & 1 for byte in data)
        if self.is_nan and self.dtype in FLOATS:
            mask = FLOATS[self.dtype].to_bytes(self.dtype.itemsize, "little") * count
            data = bytearray(a | b for a, b in zip(data, mask, strict=True))
        flat = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype, device="cpu")
        return self.laid_out(flat.reshape(self.shape))

    def blank(self) -> Tensor:
        """Make a tensor of ones to receive into."""
        return self.laid_out(torch.ones(self.shape, dtype=torch.uint8, device="cpu").to(self.dtype))

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the memory layout ``layout``."""
        if self.layout == "turned" and tensor.dim() > 1:
            return tensor.transpose(0, 1).contiguous().transpose(0, 1)
        if self.layout == "sparse" and tensor.dim() > 0:
            wide = torch.zeros((*tensor.shape[:-1], tensor.shape[-1] * 2), dtype=tensor.dtype, device="cpu")
            wide[..., ::2].copy_(tensor)
            return wide[..., ::2]
        return tensor.clone()


def bits(tensor: Tensor) -> Bits:
    """Return a tensor's dtype, shape and bytes, for exact comparison including NaNs."""
    data = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor).reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), data.numpy().tobytes()


def spoil(tensor: Tensor) -> None:
    """Overwrite a tensor in place with other values, as a caller may after handing it over."""
    if tensor.numel():
        tensor.copy_(torch.zeros_like(tensor) if tensor.ne(0).any() else torch.ones_like(tensor))


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
PAYLOADS = st.builds(
    Payload, st.sampled_from(DTYPES), SHAPES, st.sampled_from(["dense", "turned", "sparse"]), st.booleans()
)
