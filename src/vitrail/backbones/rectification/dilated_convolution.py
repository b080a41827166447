"""Rectification ``dilated-convolution``: dilated convolutions for features larger than in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.backbones.rectification.convolutions import OUTER, Convolution, convolutions, dilated, tell_missing
from vitrail.backbones.rectification.module_hooks import attached, refuse_compiled
from vitrail.backbones.rectification.scope import (
    BLOCKS,
    after_start,
    blocks,
    choose,
    each_once,
    known_branches,
    present,
    scale_of,
    sites_in,
    steps_between,
    within,
)
from vitrail.core.config.fields import as_tuple, share_below_one
from vitrail.core.method.micro_batch import Branch

if TYPE_CHECKING:
    from torch import nn

    from vitrail.core.method.protocols import Forward

NAME = "dilated-convolution"


@frozen(kw_only=True)
class DilatedConvolution:
    """Dilate 3x3 convolutions, so that they cover as much of a large picture as of a training picture.

    ScaleCrafter (He et al., 2023, https://arxiv.org/abs/2310.07702), sec. 3: with a dilation d the taps of a
    convolution are d cells apart; a fraction is implemented by resizing the features by ceil(d) / d, dilating by
    ceil(d) and resizing the output back, bilinearly. 1 is off. Without ``dilations`` d is the longer side of a view
    over the side of a training picture, rounded to halves, less ``fall`` for each level of a block above the deepest.
    ``progressive``, as in the authors' code, reduces d over the steps, in whole numbers, to 2.

    1x1 shortcuts are not changed, and the first and last convolution only if named.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"convolutions"})
    sites: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=sites_in(*BLOCKS, *OUTER)
    )  # () for all blocks below the highest resolution
    dilations: tuple[float, ...] = field(
        default=(), converter=as_tuple, validator=v.deep_iterable(v.ge(1))
    )  # one per site; () to follow the size of the views
    fall: float = field(default=0.0, validator=v.ge(0))  # reduction of the dilation per level above the deepest
    progressive: bool = False  # reduce the dilation over the steps
    skip_missing: bool = False  # ignore sites that the network lacks; published lists for SDXL name some
    start: float = field(default=0.0, validator=share_below_one)  # share of the schedule's steps before it acts
    until: float = field(default=1.0, validator=after_start)  # share of the schedule's steps after which it is inactive
    branches: tuple[Branch, ...] = field(
        default=(), converter=as_tuple, validator=known_branches
    )  # CFG branches that it acts on; () for all

    def __attrs_post_init__(self) -> None:
        if self.dilations and len(self.dilations) != len(self.sites):
            raise ValueError(
                f"'dilations' needs a value for each of the {len(self.sites)} sites, got {len(self.dilations)}"
            )
        if self.dilations and self.fall:
            raise ValueError("'fall' is for dilations that follow the size of the views; leave it or 'dilations' out")

    def check(self, network: nn.Module | None) -> None:
        """Refuse sites without a 3x3 convolution, or that share one."""
        refuse_compiled(network, (), NAME)
        refuse_compiled(network, (conv.name for conv, _ in self._chosen(network)), NAME)
        if self.skip_missing:
            places = convolutions(network, also=[name for name in OUTER if name in self.sites])
            tell_missing(network, places, self.sites)

    def apply(self, forward: Forward) -> AbstractContextManager[None]:
        """Dilate the sites' convolutions, in the steps of the range."""
        if not within(forward.step, self.start, self.until):
            return nullcontext()
        chosen = self._chosen(forward.network)
        deepest = max(block.halvings for block in blocks(forward.network))
        scale = 1.0 if self.dilations else max(1.0, math.floor(2 * scale_of(forward) + 0.5) / 2)
        steps = steps_between(forward.step, self.start, self.until)
        hooks = []
        for conv, given in chosen:
            full = max(1.0, scale - self.fall * (deepest - conv.halvings)) if given is None else given
            now = shrunk(full, steps, forward.step.phase_step) if self.progressive else full
            hooks += [dilated(conv, now)] if now > 1 else []
        return attached(forward.network, hooks, NAME)

    def _chosen(self, network: Any) -> list[tuple[Convolution, float | None]]:
        """Return the chosen convolutions with their given dilation, or None."""
        places = convolutions(network, also=[name for name in OUTER if name in self.sites])
        if not self.sites:
            below = [conv for conv in places.values() if conv.halvings > 0]
            return [(conv, None) for conv in below or places.values()]
        known = (present(places, self.sites) if self.skip_missing else ()) or self.sites
        groups = choose(places, known, "3x3 convolution with a border of one zero")
        each_once([name for site in known for name in groups[site]], NAME)
        given: Sequence[float | None] = self.dilations or [None] * len(self.sites)
        pairs = zip(self.sites, given, strict=True)
        return [(places[name], dilation) for site, dilation in pairs for name in groups.get(site, ())]


def shrunk(dilation: float, steps: range, step: int) -> float:
    """Return a dilation that falls over a range of steps, in whole numbers, from itself to 2 at least.

    Args:
        dilation: The full dilation.
        steps: Steps in which the rectification acts.
        step: Current step.
    """
    left = (steps.stop - step) / len(steps)
    return min(dilation, max(math.ceil(dilation * left), 2))
