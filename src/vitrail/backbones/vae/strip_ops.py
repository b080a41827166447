"""Layers of a decoder over a picture that is split into horizontal strips, exactly as over the whole.

A strip is never decoded as if it were a picture. Before each layer the ranks exchange what it needs of other strips:
the first and the last row of every strip, for the 3x3 convolutions, and the mean and variance of every strip, from
which each rank computes the group norm's statistics of the whole picture. The sums are taken in the order of the
strips, and each strip is computed alone, so that a picture is the same bit for bit however strips are assigned.

Where the edges of the picture meet, its last column precedes its first, and its last row, of the last strip, precedes
its first; nothing else differs, since norms, activations and upsampling do not depend on position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from attrs import define, evolve, field, frozen
from torch import Tensor, nn

from vitrail.core.config.run_config import Wrap
from vitrail.core.engine.memory_backoff import is_out_of_memory, let_go
from vitrail.core.engine.parallel import begun

Key = tuple[int, str]  # strip, and name of its tensor


class StripExchange(Protocol):
    """Exchange of small tensors between ranks."""

    @property
    def rank(self) -> int:
        """Number of this rank."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def workers(self) -> int:
        """Strips that this rank may compute concurrently."""

    def gather(
        self, mine: Mapping[Key, Tensor], like: Mapping[Key, Tensor], owner: Mapping[Key, int]
    ) -> Mapping[Key, Tensor]:
        """Gather every rank's tensors on every rank; collective, with equal ``like`` and ``owner`` on all ranks.

        Args:
            mine: The tensors of the keys that this rank owns.
            like: For every key a tensor on the ``meta`` device with the expected shape and dtype.
            owner: The rank of every key; a rank may own none or all.
        """


class Alone:
    """The exchange of a single rank that owns every strip."""

    rank, world_size, workers = 0, 1, 1

    def gather(
        self, mine: Mapping[Key, Tensor], like: Mapping[Key, Tensor], owner: Mapping[Key, int]
    ) -> Mapping[Key, Tensor]:
        """Return ``mine``: all tensors are this rank's. See ``StripExchange.gather``."""
        return mine


@frozen(eq=False)
class Team:
    """Assignment of strips to ranks.

    Attributes:
        rows: Rows of each strip, in latent cells: their shares of the picture's height.
        rank: This rank.
        world_size: Number of ranks, each of which owns a contiguous block of strips, or none.
        exchange: Exchange between them.
    """

    rows: tuple[int, ...]
    rank: int
    world_size: int
    exchange: StripExchange

    def owner(self, strip: int) -> int:
        """Return the rank of a strip."""
        return strip * self.world_size // len(self.rows)

    def own(self) -> tuple[int, ...]:
        """Return the strips of this rank."""
        return tuple(strip for strip in range(len(self.rows)) if self.owner(strip) == self.rank)

    def gather(self, mine: Mapping[Key, Tensor], like: Mapping[str, Tensor]) -> Mapping[Key, Tensor]:
        """Gather tensors of every strip, which have one shape and dtype over the strips."""
        keys = [(strip, name) for strip in range(len(self.rows)) for name in like]
        expected = {key: like[key[1]] for key in keys}
        return self.exchange.gather(mine, expected, {key: self.owner(key[0]) for key in keys})


@define
class Shortage:
    """Record that memory ran out on a rank, which still takes part in exchanges so that no other rank waits.

    Attributes:
        reason: The allocator's message; "" as long as memory sufficed.
    """

    reason: str = ""

    @contextmanager
    def noted(self, *held: dict[int, Tensor]) -> Iterator[None]:
        """Catch a failed allocation in the block, and free the strips in ``held``."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.reason = str(error).partition("\n")[0] or type(error).__name__
            let_go(error)
        if self.reason:
            for tensors in held:
                tensors.clear()


@frozen(eq=False)
class Strips:
    """One rank's share of a layer's input; an operation removes strips from ``tensors`` as it proceeds.

    Attributes:
        team: Assignment of strips to ranks.
        width: Width of the picture at this layer; also needed by a rank without strips.
        tensors: The strips that this rank owns, Float[Tensor, "1 channels rows width"]; empty after a shortage.
        wrap: Axes on which the edges of the picture meet.
        shortage: Shortage of this rank, over all layers.
    """

    team: Team
    width: int
    tensors: dict[int, Tensor]
    wrap: Wrap = "none"
    shortage: Shortage = field(factory=Shortage)

    def conv(self, conv: nn.Conv2d) -> Strips:
        """Apply a 3x3 convolution."""
        seen = self._look_around(conv.in_channels, conv.weight.dtype)
        out: dict[int, Tensor] = {}
        with self.shortage.noted(self.tensors, out):
            self._each(lambda index: _conv_rows(self._pad(index, seen), conv, self._wraps("x")), out)
        return evolve(self, tensors=out)

    def norm_act_conv(self, norm: nn.GroupNorm, conv: nn.Conv2d) -> Strips:
        """Apply group norm with the whole picture's statistics, SiLU, and a 3x3 convolution."""
        seen = self._look_around(norm.num_channels, conv.weight.dtype, norm.num_groups)
        all_moments = [seen[strip, "moments"] for strip in range(len(self.team.rows))]
        mean, variance = merge_moments(torch.stack(all_moments).cpu(), self.team.rows)
        wide = torch.promote_types(conv.weight.dtype, torch.float32)
        out: dict[int, Tensor] = {}
        with self.shortage.noted(self.tensors, out):
            scale, shift = (each.to(conv.weight.device, wide) for each in scale_and_shift(norm, mean, variance))

            def one(index: int) -> Tensor:
                strip = self._pad(index, seen).to(wide)
                F.silu(strip.mul_(scale).add_(shift), inplace=True)
                self._blank_outside(index, strip)
                return _conv_rows(strip.to(conv.weight.dtype), conv, self._wraps("x"))

            self._each(one, out)
        return evolve(self, tensors=out)

    def upsample_conv(self, conv: nn.Conv2d) -> Strips:
        """Double rows and columns by repetition, and apply a 3x3 convolution."""
        seen = self._look_around(conv.in_channels, conv.weight.dtype)
        out: dict[int, Tensor] = {}
        with self.shortage.noted(self.tensors, out):

            def one(index: int) -> Tensor:
                grown = F.interpolate(self._pad(index, seen), scale_factor=2.0, mode="nearest")
                return _conv_rows(grown[:, :, 1:-1], conv, self._wraps("x"))

            self._each(one, out)
        return evolve(self, width=2 * self.width, tensors=out)

    def resnet(self, block: Any) -> Strips:
        """Apply a ``ResnetBlock2D`` without time embedding and resampling."""
        inner = evolve(self, tensors=dict(self.tensors)).norm_act_conv(block.norm1, block.conv1)
        inner = inner.norm_act_conv(block.norm2, block.conv2)
        with self.shortage.noted(self.tensors, inner.tensors):
            for index, strip in inner.tensors.items():
                shortcut = self.tensors.pop(index)
                if block.conv_shortcut is not None:
                    shortcut = block.conv_shortcut(shortcut)
                strip.add_(shortcut)
                if block.output_scale_factor != 1:
                    strip.div_(block.output_scale_factor)
        return inner

    def _each(self, compute: Callable[[int], Tensor], out: dict[int, Tensor]) -> None:
        """Compute every strip into ``out`` by its index, concurrently as far as the rank may."""
        indices = tuple(self.tensors)
        with begun(compute, indices, self.team.exchange.workers) as asked:
            for index, ask in zip(indices, asked, strict=True):
                out[index] = ask()

    def _wraps(self, axis: str) -> bool:
        return self.wrap != "none" and axis in self.wrap

    def _look_around(self, channels: int, dtype: torch.dtype, groups: int = 0) -> Mapping[Key, Tensor]:
        """Gather the first and last row of every strip, and with ``groups`` its moments; zeros for lost strips."""
        mine: dict[Key, Tensor] = {}
        like = {"rows": torch.empty(1, channels, 2, self.width, dtype=dtype, device="meta")}
        if groups:
            like["moments"] = torch.empty(2, groups, dtype=torch.float64, device="meta")
        with self.shortage.noted(self.tensors):
            for index, strip in self.tensors.items():
                mine[index, "rows"] = torch.cat([strip[:, :, :1], strip[:, :, -1:]], 2)
                if groups:
                    mine[index, "moments"] = moments(strip, groups)
        if self.shortage.reason:
            keys = ((index, name) for index in self.team.own() for name in like)
            mine = {key: torch.zeros(like[key[1]].shape, dtype=like[key[1]].dtype, device="cpu") for key in keys}
        return self.team.gather(mine, like)

    def _pad(self, index: int, seen: Mapping[Key, Tensor]) -> Tensor:
        """Take a strip out, with one row of each neighbour; zeros outside the picture.

        The result is a new tensor in the strip's own memory format, which must not depend on where the rows came from.
        """
        count, around = len(self.team.rows), self._wraps("y")
        padded = F.pad(self.tensors.pop(index), (0, 0, 1, 1))
        if index > 0 or around:
            padded[:, :, 0] = seen[(index - 1) % count, "rows"][:, :, 1]
        if index < count - 1 or around:
            padded[:, :, -1] = seen[(index + 1) % count, "rows"][:, :, 0]
        return padded

    def _blank_outside(self, index: int, strip: Tensor) -> None:
        """Set padding rows outside the picture back to zero."""
        if self._wraps("y"):
            return
        if index == 0:
            strip[:, :, 0] = 0
        if index == len(self.team.rows) - 1:
            strip[:, :, -1] = 0


def moments(strip: Tensor, groups: int) -> Tensor:
    """Return mean and variance of each group of channels, Float64[Tensor, "2 groups"], in two passes."""
    flat = strip.reshape(groups, -1).to(torch.promote_types(strip.dtype, torch.float32))
    mean = flat.mean(1)
    variance = (flat - mean[:, None]).square_().mean(1)
    return torch.stack([mean, variance]).cpu().double()


def merge_moments(each: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the whole from those of its strips.

    Args:
        each: Float64[Tensor, "strips 2 groups"].
        rows: Rows of each strip, or numbers in proportion to them.
    """
    share = torch.tensor(rows, dtype=torch.float64, device=each.device)[:, None] / sum(rows)
    means, variances = each.unbind(1)
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def scale_and_shift(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return a group norm with given statistics as factor and summand, Float64[Tensor, "1 channels 1 1"] each.

    Args:
        norm: The group norm.
        mean: Float64[Tensor, "groups"].
        variance: Float64[Tensor, "groups"].
    """
    size = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(size)
    shift = -mean.repeat_interleave(size) * scale
    if norm.affine:
        weight, bias = norm.weight.cpu().double(), norm.bias.cpu().double()
        scale, shift = scale * weight, shift * weight + bias
    return scale[None, :, None, None], shift[None, :, None, None]


def _conv_rows(padded: Tensor, conv: nn.Conv2d, around: bool) -> Tensor:
    """Convolve rows that include their neighbours; columns are padded with zeros, or circularly if ``around``."""
    if around:
        padded = F.pad(padded, (1, 1, 0, 0), mode="circular")
    return F.conv2d(padded, conv.weight, conv.bias, padding=(0, 0 if around else 1), groups=conv.groups)
