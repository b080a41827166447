"""Rectification ``window-attention``: self-attention in a few large windows that are shifted at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.backbones.rectification.attention_scale import Layer, self_attentions
from vitrail.backbones.rectification.module_hooks import Hook, attached, refuse_compiled
from vitrail.backbones.rectification.scope import (
    BLOCKS,
    after_start,
    choose,
    is_larger,
    known_branches,
    sites_in,
    within,
)
from vitrail.core.config.fields import as_tuple, share_below_one
from vitrail.core.method.micro_batch import Branch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitrail.core.method.protocols import Forward

NAME = "window-attention"
SHIFTS = 4  # possible shifts, a quarter of a window apart


@frozen(kw_only=True)
class WindowAttention:
    """Restrict self-attention to windows, in the layers with the most tokens, whose attention is local.

    HiDiffusion's modified shifted window attention (Zhang et al., 2023, https://arxiv.org/abs/2311.17528), sec. 4. The
    features are rolled by zero to three quarters of a window on both axes, drawn for each layer and step, split into
    ``windows`` by ``windows`` windows, and rolled back afterwards. Windows have one size: where it does not divide a
    side they overlap, and outputs of shared cells are averaged, so nothing is padded or resized. 1 is off. Views with
    no more cells than a training picture are not changed; use it with larger views (``whole``).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"self-attention"})
    sites: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=sites_in(*BLOCKS)
    )  # () for all layers of the highest resolution that has any
    windows: int = field(default=2, validator=v.ge(1))  # number of windows along each axis
    start: float = field(default=0.0, validator=share_below_one)  # share of the schedule's steps before it acts
    until: float = field(default=1.0, validator=after_start)  # share of the schedule's steps after which it is inactive
    branches: tuple[Branch, ...] = field(
        default=(), converter=as_tuple, validator=known_branches
    )  # CFG branches that it acts on; () for all

    def check(self, network: nn.Module | None) -> None:
        """Refuse sites without self-attention."""
        refuse_compiled(network, (layer.name for _, layer in self._layers(network)), NAME)

    def apply(self, forward: Forward) -> AbstractContextManager[None]:
        """Split the sites' layers into windows, in the steps of the range."""
        if self.windows == 1 or not (within(forward.step, self.start, self.until) and is_larger(forward)):
            return nullcontext()
        network: Any = forward.network
        sizes: dict[str, list[int]] = {}
        hooks = []
        for number, layer in self._layers(network):
            above = layer.name.partition(".transformer_blocks")[0]
            if above not in sizes:
                sizes[above] = []
                hooks.append(Hook(above, network.get_submodule(above), before=_remember(sizes[above])))
            generator = forward.streams.generator("window-shift", forward.step.index, number)
            hooks.append(_windowed(layer, sizes[above], self.windows, _drawn(generator)))
        return attached(network, hooks, NAME)

    def _layers(self, network: Any) -> list[tuple[int, Layer]]:
        """Return the chosen layers with their numbers in the whole network."""
        layers = list(self_attentions(network))
        top = min((layer.halvings for layer in layers), default=0)
        sites = self.sites or [layer.name for layer in layers if layer.halvings == top]
        groups = choose([layer.name for layer in layers], sites, "self-attention")
        chosen = {name for group in groups.values() for name in group}
        return [(number, layer) for number, layer in enumerate(layers) if layer.name in chosen]


def parted(features: Tensor, windows: int, shift: int) -> Tensor:
    """Roll features and split them into windows.

    Args:
        features: Float[Tensor, "batch h w channels"].
        windows: Number of windows along each axis.
        shift: Shift of the windows down and right, in quarters of a window.

    Returns:
        Float[Tensor, "windows*windows*batch u v channels"].
    """
    import torch

    rolled = features.roll(_rolls(features.shape[1:3], windows, shift), (1, 2))
    return torch.cat([rolled[:, rows, cols] for rows, cols in _spans(features.shape[1:3], windows)])


def rejoined(parts: Tensor, height: int, width: int, windows: int, shift: int) -> Tensor:
    """Join features from their windows and roll them back; cells in several windows are averaged.

    Args:
        parts: As ``parted`` returns them, Float[Tensor, "windows*windows*batch u v channels"].
        height: Height of the features, cells.
        width: Width of the features, cells.
        windows: Number of windows along each axis.
        shift: As in ``parted``.

    Returns:
        Float[Tensor, "batch height width channels"].
    """
    each = parts.reshape(windows * windows, -1, *parts.shape[1:])
    whole, counts = each.new_zeros(each.shape[1], height, width, each.shape[-1]), each.new_zeros(height, width, 1)
    for part, (rows, cols) in zip(each, _spans((height, width), windows), strict=True):
        whole[:, rows, cols] += part
        counts[rows, cols] += 1
    down, right = _rolls((height, width), windows, shift)
    mean: Tensor = whole / counts
    return mean.roll((-down, -right), (1, 2))


def _side(length: int, windows: int) -> int:
    return -(-length // windows)


def _rolls(sides: Any, windows: int, shift: int) -> tuple[int, int]:
    down, right = (-shift * (_side(length, windows) // SHIFTS) for length in sides)
    return down, right


def _spans(sides: Any, windows: int) -> Iterator[tuple[slice, slice]]:
    """Yield the windows of a picture, row-major; they cover each axis from end to end."""
    along = []
    for length in sides:
        side = _side(length, windows)
        begins = [i * (length - side) // max(1, windows - 1) for i in range(windows)]
        along.append([slice(begin, begin + side) for begin in begins])
    yield from ((rows, cols) for rows in along[0] for cols in along[1])


def _drawn(generator: Any) -> int:
    import torch

    return int(torch.randint(SHIFTS, (), generator=generator, dtype=torch.int64, device=generator.device))


def _remember(size: list[int]) -> Any:
    def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        size[:] = args[0].shape[-2:]

    return remember


def _windowed(layer: Layer, size: list[int], windows: int, shift: int) -> Hook:
    """Return a hook that splits the tokens, Float[Tensor, "batch tokens width"], of features of a size."""

    def part(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        batch, _, width = args[0].shape
        parts = parted(args[0].reshape(batch, *size, width), windows, shift)
        return (parts.flatten(1, 2), *args[1:]), kwargs

    def join(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        height, width = size
        sides = (_side(length, windows) for length in size)
        parts = output.reshape(len(output), *sides, output.shape[-1])
        return rejoined(parts, height, width, windows, shift).flatten(1, 2)

    return Hook(layer.name, layer.attention, part, join)
