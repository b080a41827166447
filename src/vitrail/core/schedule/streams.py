"""Named random streams derived from one seed, drawn on CPU for the whole canvas.

A stream is a function of (seed, name, index), so a new consumer does not shift the others, and the
numbers of a step do not depend on the order of calls, on the device or on the number of ranks.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Generator, Tensor

SCHEME = 1  # increased whenever the same seed would give other numbers


@frozen
class Streams:
    """Derive a generator for every purpose of a run.

    Attributes:
        seed: Any 64-bit integer.
    """

    seed: int

    def generator(self, name: str, *index: int) -> Generator:
        """Return a fresh CPU generator for one purpose, e.g. ``generator("permutation", step.index)``."""
        import torch

        text = "/".join([str(SCHEME), str(self.seed), name, *map(str, index)])
        digest = hashlib.sha256(text.encode()).digest()
        return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def normal(self, shape: tuple[int, ...], name: str, *index: int) -> Tensor:
        """Draw standard normal numbers on CPU, Float32[Tensor, "*shape"]."""
        import torch

        return torch.randn(shape, generator=self.generator(name, *index), dtype=torch.float32, device="cpu")

    def uniform(self, shape: tuple[int, ...], name: str, *index: int) -> Tensor:
        """Draw uniform numbers in [0, 1) on CPU, Float32[Tensor, "*shape"]."""
        import torch

        return torch.rand(shape, generator=self.generator(name, *index), dtype=torch.float32, device="cpu")
