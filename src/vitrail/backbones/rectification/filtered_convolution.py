"""Rectification ``filtered-convolution``: dilated convolutions of features without what these would alias."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs import validators as v

from vitrail.backbones.rectification.attention_scale import Layer, self_attentions
from vitrail.backbones.rectification.convolutions import Convolution, convolutions, tell_missing
from vitrail.backbones.rectification.copied_rows import CopiedRows
from vitrail.backbones.rectification.low_pass import LowPass
from vitrail.backbones.rectification.module_hooks import attached, refuse_compiled, refuse_fused
from vitrail.backbones.rectification.parted_convolution import RowsPart, parted
from vitrail.backbones.rectification.scope import BLOCKS, choose, present, sites_in, steps_between, within
from vitrail.core.config.fields import as_tuple, share, share_below_one

if TYPE_CHECKING:
    from torch import nn

    from vitrail.core.method.micro_batch import Branch
    from vitrail.core.method.protocols import Forward
    from vitrail.core.schedule.step import Step

NAME = "filtered-convolution"
TINY = 1e-6  # a view this little larger than a whole number of training pictures counts as that number


@frozen(kw_only=True)
class FilteredConvolution:
    """Dilate 3x3 convolutions, and damp frequencies before them that dilated taps would alias.

    FouriScale (Huang et al., 2024, https://arxiv.org/abs/2403.12963), sec. 3. The dilation d is the side of a
    view over that of a training picture, the roots of their areas, rounded up; features are filled up with zeros to d
    times the training size for the filter, and cut again. After the share ``full`` of the steps d falls by a line, to 1
    at ``until``; the taps have ceil(d). Upsamplers are dilated and not filtered. Views of the training size are not
    changed; use it with larger views (``whole``).

    ``guided``: a conditional row is filtered more softly and dilated ceil(d / ``ease``), which leaves it detail;
    structure comes from a copy of it that is filtered as the other rows are, whose queries and keys it has in
    self-attention. The copy is one further row in the forward of each, counted in plans, while the rectification acts.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"convolutions", "self-attention"})
    sites: tuple[str, ...] = field(
        default=(), converter=as_tuple, validator=sites_in(*BLOCKS)
    )  # () for all blocks below the highest resolution
    floor: float = field(default=0.6, validator=share)  # what is left of the highest frequencies; 1 is no filter
    guided: bool = True  # soft conditional rows, with queries and keys of a copy
    ease: float = field(default=1.5, validator=v.ge(1))  # the dilation of soft rows is so many times smaller
    skip_missing: bool = False  # ignore sites that the network lacks
    full: float = field(default=0.4, validator=share_below_one)  # share of the schedule's steps with the whole dilation
    until: float = field(
        default=0.7, validator=v.and_(v.gt(0), v.le(1))
    )  # share of the schedule's steps after which it is inactive

    def check(self, network: nn.Module | None) -> None:
        """Refuse sites without a 3x3 convolution, and self-attention with fused projections."""
        refuse_compiled(network, (conv.name for conv in self._chosen(network)), NAME)
        if self.guided:
            layers = self._layers(network)
            refuse_fused(((layer.name, layer.attention) for layer in layers), NAME, "lends queries and keys")
            refuse_compiled(network, (layer.name for layer in layers), NAME)
        if self.skip_missing:
            tell_missing(network, convolutions(network), self.sites)

    def apply(self, forward: Forward) -> AbstractContextManager[None]:
        """Filter and dilate the sites' convolutions at views larger than in training, in the steps of the range."""
        cells = math.prod(forward.rows.views[0].shape)
        dilation = self._dilation(forward.step, cells, forward.native_size**2)
        if dilation == 1:
            return nullcontext()
        padded = whole_dilation(cells, forward.native_size**2) / math.sqrt(cells / forward.native_size**2)
        rows = CopiedRows.of_branch(forward, "cond") if self.guided else CopiedRows(len(forward.rows.model_input))
        hooks = [parted(conv, self._parts(conv, rows, dilation, padded)) for conv in self._chosen(forward.network)]
        if rows.copied:
            hooks.append(rows.through(forward.network))
            for layer in self._layers(forward.network):
                hooks.append(rows.lent(f"{layer.name}.to_q", layer.attention.to_q))
                hooks.append(rows.lent(f"{layer.name}.to_k", layer.attention.to_k))
        return attached(forward.network, hooks, NAME)

    def _dilation(self, step: Step, cells: int, native_cells: int) -> float:
        """Return d at a step; 1 where nothing is changed."""
        if not within(step, 0.0, self.until):
            return 1.0
        falling = steps_between(step, self.full, self.until)
        return fallen(whole_dilation(cells, native_cells), falling, step.phase_step)

    def further_rows(self, step: Step, branch: Branch, cells: int, native_cells: int) -> int:
        """One for a conditional row, where the rectification acts and is ``guided``."""
        return int(self.guided and branch == "cond" and self._dilation(step, cells, native_cells) > 1)

    def _parts(self, conv: Convolution, rows: CopiedRows, dilation: float, padded: float) -> list[RowsPart]:
        """Return the entries that are filtered and dilated in full, and those that are so softly."""
        scale, filters = max(1.0, dilation / conv.stride), ".upsamplers." not in conv.name
        found = [
            RowsPart(rows.others, math.ceil(dilation), LowPass(scale, self.floor, False, padded) if filters else None)
        ]
        if rows.copied:
            soft = LowPass(scale, self.floor, True, padded) if filters else None
            found.append(RowsPart(rows.copied, math.ceil(max(1.0, dilation / self.ease)), soft))
        return [part for part in found if part.entries]

    def _chosen(self, network: Any) -> list[Convolution]:
        places = convolutions(network)
        if not self.sites:
            return [conv for conv in places.values() if conv.halvings > 0] or list(places.values())
        known = (present(places, self.sites) if self.skip_missing else ()) or self.sites
        groups = choose(places, known, "3x3 convolution with a border of one zero")
        return [places[name] for name in dict.fromkeys(name for site in known for name in groups[site])]

    def _layers(self, network: Any) -> list[Layer]:
        layers = {layer.name: layer for layer in self_attentions(network)}
        choose(layers, ["*"], "self-attention")
        return list(layers.values())


def whole_dilation(cells: int, native_cells: int) -> int:
    """Return the side of a view over that of a training picture, the roots of their areas, rounded up.

    Args:
        cells: Latent cells of the view.
        native_cells: Latent cells of a training picture.
    """
    return max(1, math.ceil(math.sqrt(cells / native_cells) - TINY))


def fallen(dilation: float, falling: range, step: int) -> float:
    """Return a dilation that falls by a line over a range of steps, to 1 at its end; elsewhere it is whole.

    Args:
        dilation: The whole dilation.
        falling: Steps over which it falls.
        step: Current step.
    """
    if step not in falling:
        return float(dilation)
    return (dilation - 1) * (falling.stop - step) / len(falling) + 1
